"""Which rows are finite: every float16 and bfloat16 there is, and float32 at its edges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations.vectors.finite import finite_rows, finite_rows_of_array


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert torch.equal(finite_rows(every[:, None]), torch.isfinite(every))
    # Beside a zero, which must hide nothing.
    pairs = torch.stack([torch.zeros_like(every), every], dim=1)
    assert torch.equal(finite_rows(pairs), torch.isfinite(every))


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=0, max_size=8))
def test_float32(rows):
    vectors = np.array(rows, np.float32).reshape(-1, 3)
    expected = np.isfinite(vectors).all(axis=1)
    assert (finite_rows_of_array(vectors) == expected).all()
    assert (finite_rows(torch.from_numpy(vectors)).numpy() == expected).all()


def test_read_only_and_strided():
    vectors = np.zeros((4, 2, 6), np.float16)[:, :, ::2]
    vectors[2, 1, 0] = -np.inf
    vectors.flags.writeable = False
    assert finite_rows_of_array(vectors).tolist() == [True, True, False, True]


def test_other_numbers():
    """What a damaged or foreign file may hold is told apart too."""
    doubles = np.array([[1.0, 1e300], [np.nan, 0.0], [0.0, -np.inf]])
    assert finite_rows_of_array(doubles).tolist() == [True, False, False]
    assert finite_rows(torch.from_numpy(doubles)).tolist() == [True, False, False]
    assert finite_rows(torch.arange(6).reshape(2, 3)).tolist() == [True, True]
