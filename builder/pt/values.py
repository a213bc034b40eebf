"""The `.pt` layouts that existing trainers read: their values, read and written.

    layers    OUT/L0/batch_0_x.pt   {'x': [N, T, H]}
              OUT/L0/batch_0_y.pt   {'y': targets[0], 'targets': [n of [N, T, H]], 'n_targets': n}
    samples   OUT/sample_0000.pt    {'activations': {0: [H] or [T, H], …}}

The functions that read take how to load a file: `load_pt`, which checks all of it first, or
`map_pt` for a file that was checked before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.recipe import MOST_LAYERS
from llava_amber_activations.parsing.safe_pt import floats_of, load_pt
from llava_amber_activations.vectors.finite import finite_rows

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)

Load = Callable[[Path], Any]


def x_path(folder: Path, layer: int, batch: int) -> Path:
    """Return the path of a batch's `x` in the `layers` layout."""
    return folder / f"L{layer}" / f"batch_{batch}_x.pt"


def y_path(folder: Path, layer: int, batch: int) -> Path:
    """Return the path of a batch's targets in the `layers` layout."""
    return folder / f"L{layer}" / f"batch_{batch}_y.pt"


def sample_path(folder: Path, sample: int) -> Path:
    """Return the path of a sample in the `samples` layout."""
    return folder / f"sample_{sample:04d}.pt"


def save_pt(path: Path, value: Any) -> None:
    """Write a `.pt` file, whole or not at all."""
    with written_whole(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


def read_x(path: Path, load: Load = load_pt) -> torch.Tensor:
    """Read a batch's `x`: [N, T, H]. A bare tensor, the key `data` and [N, 1, T, H] are taken too.

    Raises:
        ActivationsError: the file holds none of these.
    """
    value = load(path)
    if isinstance(value, dict):
        value = value.get("x", value.get("data"))
    return _batch_tensor(value, path, "x")


def read_targets(path: Path, load: Load = load_pt) -> list[torch.Tensor]:
    """Read a batch's targets: a list of [N, T, H]; a lone `y` is one target.

    Raises:
        ActivationsError: the file holds neither.
    """
    value = load(path)
    if isinstance(value, dict):
        value = value.get("targets", value.get("y", value.get("data")))
    tensors = list(value) if isinstance(value, (list, tuple)) else [value]
    if not 0 < len(tensors) <= MOST_LAYERS:
        raise ActivationsError(
            f"{path} holds a list of {len(tensors)} targets: a layer has at least one, and "
            f"{MOST_LAYERS} at most"
        )
    return [_batch_tensor(tensor, path, f"targets[{n}]") for n, tensor in enumerate(tensors)]


def read_sample(path: Path, load: Load = load_pt) -> dict[int, torch.Tensor]:
    """Read a sample file: [T, H] for each layer, T being 1 where the file holds [H].

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
        checked = _exact_floats(tensor, path, f"activations[{layer}]")
        if checked.ndim not in (1, 2):
            raise ActivationsError(
                f"activations[{layer}] of {path} has the shape {list(checked.shape)}, "
                "not [H] or [T, H]"
            )
        layers[layer] = checked.reshape(-1, checked.shape[-1])
    return dict(sorted(layers.items()))


def _exact_floats(value: Any, path: Path, key: str) -> torch.Tensor:
    """Return a tensor of a dtype that a dataset holds without a change of value."""
    tensor = floats_of(value, path, key)
    if tensor.dtype not in _FLOATS:
        raise ActivationsError(
            f"{key} of {path} is {tensor.dtype}: a dataset holds float16, bfloat16 or float32; "
            "convert it first"
        )
    return tensor


def _batch_tensor(value: Any, path: Path, key: str) -> torch.Tensor:
    tensor = _exact_floats(value, path, key)
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.ndim != 3:
        raise ActivationsError(
            f"{key} of {path} has the shape {list(tensor.shape)}, not [N, T, H] or [N, 1, T, H]"
        )
    return tensor


def check_values(tensor: torch.Tensor, path: Path, key: str, first_sample: int) -> None:
    """Check that a tensor of a file is finite, which reads all of it.

    Args:
        tensor: [samples, …].
        first_sample: number of the file's first sample in the folder.

    Raises:
        ActivationsError: it is not; the message names the first sample that is not.
    """
    finite = finite_rows(tensor)
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise ActivationsError(
            f"{key} of {path} has values that are not finite, in sample {first_sample + row} of "
            "the folder: they were lost before this file was written"
        )
