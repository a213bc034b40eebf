"""Normalisation statistics of a dataset: `statistics.safetensors`, and reading it.

    x_mean, x_std                    float32 [n_layers, H]
    mlp_out_mean, mlp_out_std        float32 [n_layers, H]
    x_mean_norm, mlp_out_mean_norm   float32 [n_layers]

Over all rows; the standard deviation is the population's (divided by the number of rows), the norm
Euclidean. A layer that the dataset does not hold is NaN.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import written_whole
from llava_amber_activations.folder import STATISTICS_FILE
from llava_amber_activations.source import open_source


@dataclass(frozen=True)
class Statistics:
    """Statistics of every layer; the fields are the tensors of the module's docstring."""

    x_mean: torch.Tensor
    x_std: torch.Tensor
    x_mean_norm: torch.Tensor
    mlp_out_mean: torch.Tensor
    mlp_out_std: torch.Tensor
    mlp_out_mean_norm: torch.Tensor


def load_statistics(source: str | Path, revision: str | None = None) -> Statistics:
    """Read the statistics of a dataset folder, or of a dataset on the Hub.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source is not a dataset of activations, or holds no statistics.
    """
    opened = open_source(source, revision)
    if STATISTICS_FILE not in opened.manifest.files:
        raise ActivationsError(f"{source} holds no {STATISTICS_FILE}: it has only features")
    names = [field.name for field in dataclasses.fields(Statistics)]
    try:
        tensors = load(opened.read_bytes(STATISTICS_FILE))
        return Statistics(**{name: tensors[name] for name in names})
    except (SafetensorError, KeyError) as error:
        raise ActivationsError(f"{STATISTICS_FILE} of {source} is damaged: {error}") from None


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write the statistics into a dataset folder."""
    with written_whole(folder / STATISTICS_FILE) as partial:
        save_file(dataclasses.asdict(statistics), partial)
