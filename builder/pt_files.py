"""The `.pt` layouts that existing trainers read: names, shapes, and reading them safely.

    layers    OUT/L0/batch_0_x.pt   {'x': [N, T, H]}
              OUT/L0/batch_0_y.pt   {'y': targets[0], 'targets': [n of [N, T, H]], 'n_targets': n}
    samples   OUT/sample_0000.pt    {'activations': {0: [H] or [T, H], …}}

Files are read with `weights_only=True`: a pickle from elsewhere may be a program.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import written_whole
from llava_amber_activations.finite import finite_rows

EXPORT_FILE = "export.json"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


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


def load_pt(path: Path) -> Any:
    """Read a `.pt` file without running anything that it may hold; tensors stay on disk till used.

    Raises:
        ActivationsError: the file is missing, truncated, or more than tensors and containers.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Written before torch 1.6, not as a zip archive.
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ActivationsError(f"{path} is missing: its batch cannot be read") from None
    except pickle.UnpicklingError:
        raise ActivationsError(
            f"{path} holds more than tensors and was not loaded, because loading it could run code "
            "of whoever wrote it: save plain tensors, lists and dicts"
        ) from None
    except Exception as error:
        # torch raises whatever the first wrong byte of a damaged file leads to.
        reason = str(error).partition("\n")[0]
        raise ActivationsError(
            f"{path} is truncated or damaged ({reason}): copy it again"
        ) from None


def read_x(path: Path) -> torch.Tensor:
    """Read a batch's `x`: [N, T, H]. A bare tensor, the key `data` and [N, 1, T, H] are taken too.

    Raises:
        ActivationsError: the file holds none of these.
    """
    value = load_pt(path)
    if isinstance(value, dict):
        value = value.get("x", value.get("data"))
    return _batch_tensor(value, path, "x")


def read_targets(path: Path) -> list[torch.Tensor]:
    """Read a batch's targets: a list of [N, T, H]; a lone `y` is one target.

    Raises:
        ActivationsError: the file holds neither.
    """
    value = load_pt(path)
    if isinstance(value, dict):
        value = value.get("targets", value.get("y", value.get("data")))
    tensors = list(value) if isinstance(value, (list, tuple)) else [value]
    if not tensors:
        raise ActivationsError(f"{path} holds an empty list of targets")
    return [_batch_tensor(tensor, path, f"targets[{n}]") for n, tensor in enumerate(tensors)]


def read_sample(path: Path) -> dict[int, torch.Tensor]:
    """Read a sample file: [T, H] for each layer, T being 1 where the file holds [H].

    Raises:
        ActivationsError: the file is not of the `samples` layout.
    """
    value = load_pt(path)
    activations = value.get("activations") if isinstance(value, dict) else None
    if not isinstance(activations, dict) or not activations:
        raise ActivationsError(f"{path} has no 'activations' by layer: it is not a sample file")
    layers = {}
    for layer, tensor in activations.items():
        if not isinstance(layer, int) or not 0 <= layer < 1000:
            raise ActivationsError(f"{path} names the layer {layer!r}: layers are integers from 0")
        checked = _float_tensor(tensor, path, f"activations[{layer}]")
        if checked.ndim not in (1, 2):
            raise ActivationsError(
                f"activations[{layer}] of {path} has the shape {list(checked.shape)}, "
                "not [H] or [T, H]"
            )
        layers[layer] = checked.reshape(-1, checked.shape[-1])
    return dict(sorted(layers.items()))


def _batch_tensor(value: Any, path: Path, key: str) -> torch.Tensor:
    tensor = _float_tensor(value, path, key)
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.ndim != 3:
        raise ActivationsError(
            f"{key} of {path} has the shape {list(tensor.shape)}, not [N, T, H] or [N, 1, T, H]"
        )
    return tensor


def _float_tensor(value: Any, path: Path, key: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ActivationsError(f"{path} has no tensor {key}: it is not a file of this layout")
    if value.dtype not in _FLOATS:
        raise ActivationsError(
            f"{key} of {path} is {value.dtype}: a dataset holds float16, bfloat16 or float32; "
            "convert it first"
        )
    if value.layout != torch.strided or not value.numel():
        raise ActivationsError(f"{key} of {path} is sparse or empty, not a dense tensor of values")
    return value.detach()


def check_values(tensor: torch.Tensor, path: Path) -> None:
    """Check that a tensor of a file is finite, which reads all of it.

    Raises:
        ActivationsError: it is not.
    """
    if not finite_rows(tensor).all():
        raise ActivationsError(
            f"{path} has values that are not finite: they were lost before this file was written"
        )
