"""The `samples` layout: where its files lie, and what they hold, read and written.

    OUT/sample_0000.pt    {'activations': {0: [H] or [T, H], …}}

A file is a sample, its number the sample's; each holds the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from builder.pt.numbered_files import by_number, matching
from builder.pt.tensors import Load, exact_floats, save_pt
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.recipe import MOST_LAYERS
from llava_amber_activations.parsing.checked_values import INT32_MAX
from llava_amber_activations.parsing.safe_pt import load_pt

if TYPE_CHECKING:
    import torch

_SAMPLE_FILE = re.compile(r"sample_([0-9]+)\.pt")


def sample_path(folder: Path, sample: int) -> Path:
    """Return the file that a sample is written to."""
    return folder / f"sample_{sample:04d}.pt"


def is_samples_layout(folder: Path) -> bool:
    """Whether a folder holds `sample_0000.pt` and so on."""
    return bool(matching(folder, _SAMPLE_FILE))


def find_samples(folder: Path) -> dict[int, Path]:
    """Return the sample files of a folder by their numbers, ascending.

    Raises:
        ActivationsError: two names are of one number, or a number is too large.
    """
    files = by_number(folder, matching(folder, _SAMPLE_FILE))
    most = max(files)
    if most > INT32_MAX:
        raise ActivationsError(
            f"{files[most]} has a number over {INT32_MAX}, which `sample` cannot hold: "
            "number the files anew"
        )
    return files


def read_sample(path: Path, load: Load = load_pt) -> dict[int, torch.Tensor]:
    """Read a sample file: [T, H] for each layer, ascending, T being 1 where the file holds [H].

    Raises:
        ActivationsError: the file is not of the `samples` layout.
    """
    value = load(path)
    activations = value.get("activations") if isinstance(value, dict) else None
    if not isinstance(activations, dict) or not activations:
        raise ActivationsError(f"{path} has no 'activations' by layer: it is not a sample file")
    layers = {}
    for layer, tensor in activations.items():
        if type(layer) is not int or not 0 <= layer < MOST_LAYERS:
            raise ActivationsError(
                f"{path} names the layer {layer!r}: layers are integers from 0 to {MOST_LAYERS - 1}"
            )
        checked = exact_floats(tensor, path, layer_key(layer))
        if checked.ndim not in (1, 2):
            raise ActivationsError(
                f"{layer_key(layer)} of {path} has the shape {list(checked.shape)}, "
                "not [H] or [T, H]"
            )
        layers[layer] = checked.reshape(-1, checked.shape[-1])
    return dict(sorted(layers.items()))


def layer_key(layer: int) -> str:
    """Return what a layer of a file is called in a message."""
    return f"activations[{layer}]"


def write_sample(path: Path, activations: Mapping[int, torch.Tensor]) -> None:
    """Write a sample file, whole or not at all.

    Args:
        activations: of each layer, [T, H]; written as [H] where T is 1. The storage of every tensor
            must be no larger than the tensor.
    """
    squeezed = {
        layer: tensor[0] if len(tensor) == 1 else tensor for layer, tensor in activations.items()
    }
    save_pt(path, {"activations": squeezed})
