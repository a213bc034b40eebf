"""The `layers` layout: where its files lie, and what they hold, read and written.

    OUT/L0/batch_0_x.pt   {'x': [N, T, H]}
    OUT/L0/batch_0_y.pt   {'y': targets[0], 'targets': [n of [N, T, H]], 'n_targets': n}

A batch is N consecutive samples of equal length T, the same in every layer. Of other scripts a bare
tensor, the key `data`, a lone `y` and [N, 1, T, H] are read too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.pt.numbered_files import by_number, matching
from builder.pt.tensors import Load, exact_floats
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import split_name
from llava_amber_activations.formats.recipe import MOST_LAYERS
from llava_amber_activations.parsing.safe_pt import is_whole_pt, load_pt

if TYPE_CHECKING:
    import torch

_LAYER_DIR = re.compile(r"L([0-9]+)")
_X_FILE = re.compile(r"batch_([0-9]+)_x\.pt")
_Y_FILE = re.compile(r"batch_([0-9]+)_y\.pt")


@dataclass(frozen=True)
class BatchFiles:
    """The two files of a batch of a layer, and the batch's number."""

    number: int
    x: Path
    y: Path

    @property
    def are_whole(self) -> bool:
        """Whether both are there and end as whole files do."""
        return is_whole_pt(self.x) and is_whole_pt(self.y)


def batch_files(folder: Path, layer: int, batch: int) -> BatchFiles:
    """Return the files that a batch of a layer is written to."""
    directory = folder / split_name(layer)
    return BatchFiles(batch, directory / f"batch_{batch}_x.pt", directory / f"batch_{batch}_y.pt")


def is_layers_layout(folder: Path) -> bool:
    """Whether a folder holds `L*/batch_*_x.pt`."""
    return any(matching(path, _X_FILE) for _, path in _layer_folders(folder))


def find_batches(folder: Path) -> dict[int, list[BatchFiles]]:
    """Return the batches of each layer that has some, both in the order of their numbers.

    Raises:
        ActivationsError: two names are of one number, layers differ in their batches, or a batch
            has one of its two files.
    """
    # A folder without batches is of no layer, whatever its name.
    with_batches = [
        (number, path) for number, path in _layer_folders(folder) if matching(path, _X_FILE)
    ]
    layers: dict[int, list[BatchFiles]] = {}
    first: Path | None = None
    numbers: set[int] = set()
    for layer, path in by_number(folder, with_batches).items():
        if layer >= MOST_LAYERS:
            raise ActivationsError(f"{path} is of no layer: they are 0 to {MOST_LAYERS - 1}")
        x = by_number(path, matching(path, _X_FILE))
        y = by_number(path, matching(path, _Y_FILE))
        if first is None:
            first, numbers = path, set(x)
        if x.keys() != numbers:
            odd = sorted(x.keys() ^ numbers)
            raise ActivationsError(
                f"{folder}: {path.name} and {first.name} differ in their batches {odd[:5]}: "
                "every layer needs the same ones"
            )
        for number in sorted(x.keys() ^ y.keys()):
            there, missing = (x[number], "y") if number in x else (y[number], "x")
            other = there.with_name(f"{there.stem[:-1]}{missing}.pt")
            raise ActivationsError(f"{other} is missing, and {there.name} is there: copy both")
        layers[layer] = [BatchFiles(number, x[number], y[number]) for number in x]
    return layers


def read_x(path: Path, load: Load = load_pt) -> torch.Tensor:
    """Read a batch's `x`: [N, T, H].

    Raises:
        ActivationsError: the file holds none.
    """
    value = load(path)
    if isinstance(value, dict):
        value = value.get("x", value.get("data"))
    return _batch_tensor(value, path, "x")


def read_targets(path: Path, load: Load = load_pt) -> list[torch.Tensor]:
    """Read a batch's targets: a list of [N, T, H]; a lone `y` is one target.

    Raises:
        ActivationsError: the file holds none.
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
    return [_batch_tensor(tensor, path, target_key(n)) for n, tensor in enumerate(tensors)]


def target_key(number: int) -> str:
    """Return what a target of a file is called in a message."""
    return f"targets[{number}]"


@contextmanager
def open_batch(
    files: BatchFiles, shape: tuple[int, int, int], dtype: torch.dtype, n_targets: int
) -> Iterator[list[Callable[[torch.Tensor], None]]]:
    """Open the two files of a batch to write; they appear when the block ends without an error.

    Args:
        shape: [N, T, H] of `x` and of each target.

    Yields:
        Of `x` and of each target, what writes its next rows, [rows, H] of `dtype`; several threads
        may write several tensors.

    Raises:
        ActivationsError: a file cannot be written.
    """
    from builder.pt.pt_writer import PtTensor, open_pt

    x, *targets = (PtTensor(shape, dtype) for _ in range(1 + n_targets))
    value = {"y": targets[0], "targets": targets, "n_targets": n_targets}
    with open_pt(files.x, {"x": x}) as of_x, open_pt(files.y, value) as of_y:
        yield [partial(of_x.write, x), *(partial(of_y.write, target) for target in targets)]


def _layer_folders(folder: Path) -> list[tuple[int, Path]]:
    return [(number, path) for number, path in matching(folder, _LAYER_DIR) if path.is_dir()]


def _batch_tensor(value: Any, path: Path, key: str) -> torch.Tensor:
    tensor = exact_floats(value, path, key)
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.ndim != 3:
        raise ActivationsError(
            f"{key} of {path} has the shape {list(tensor.shape)}, not [N, T, H] or [N, 1, T, H]"
        )
    return tensor
