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
from llava_amber_activations.files.read_errors import reason_of
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.dataset_folder import REMEDY, STATISTICS_FILE
from llava_amber_activations.sources.source import Source, open_source


@dataclass(frozen=True)
class Statistics:
    """Statistics of every layer; the fields are the tensors of the module's docstring."""

    x_mean: torch.Tensor
    x_std: torch.Tensor
    x_mean_norm: torch.Tensor
    mlp_out_mean: torch.Tensor
    mlp_out_std: torch.Tensor
    mlp_out_mean_norm: torch.Tensor


_NAMES = tuple(field.name for field in dataclasses.fields(Statistics))


def load_statistics(source: str | Path, revision: str | None = None) -> Statistics:
    """Read the statistics of a dataset folder, or of a dataset on the Hub.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source is not a dataset of activations, or holds no statistics, or
            they are damaged or of other sizes than its recipe says.
    """
    return read_statistics(open_source(source, revision))


def read_statistics(source: Source) -> Statistics:
    """Read the statistics of a source that is open.

    Raises:
        ActivationsError: as `load_statistics`.
    """
    if STATISTICS_FILE not in source.manifest.files:
        raise ActivationsError(f"{source.name} holds no {STATISTICS_FILE}: it has only features")
    damaged = f"{STATISTICS_FILE} of {source.name} is damaged"
    try:
        tensors = load(source.read_bytes(STATISTICS_FILE))
    except (SafetensorError, ValueError, LookupError) as error:
        raise ActivationsError(f"{damaged} ({reason_of(error)}): {REMEDY}") from None
    recipe = source.manifest.recipe
    for name in _NAMES:
        shape = (
            (recipe.n_layers,) if name.endswith("_norm") else (recipe.n_layers, recipe.hidden_size)
        )
        found = tensors.get(name)
        if found is None:
            raise ActivationsError(f"{damaged} (it has no {name}): {REMEDY}")
        if found.dtype != torch.float32 or found.shape != shape:
            raise ActivationsError(
                f"{damaged} ({name} is {found.dtype} {list(found.shape)}, not float32 "
                f"{list(shape)}): {REMEDY}"
            )
    return Statistics(**{name: tensors[name] for name in _NAMES})


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write the statistics into a dataset folder."""
    with written_whole(folder / STATISTICS_FILE) as partial:
        save_file(dataclasses.asdict(statistics), partial)
