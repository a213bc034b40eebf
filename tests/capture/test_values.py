"""Captured values against an independent pass: one sample at a time, no padding, plain hooks."""

import datasets
import pytest
import torch
from datasets import load_dataset

from builder.build import build
from conftest import QUERIES
