"""Which files of a folder are of which `.pt` layout, by the names that they really have.

Scripts write `L5` or `L05`, `batch_0_x.pt` or `batch_000_x.pt`, `sample_0001.pt` or
`sample_00001.pt`: the number counts, and the file is opened by its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.recipe import MOST_LAYERS
from llava_amber_activations.parsing.checked_values import INT32_MAX

# What `export` notes down beside the files that it writes.
EXPORT_FILE = "export.json"

_LAYER_DIR = re.compile(r"L([0-9]+)")
_X_FILE = re.compile(r"batch_([0-9]+)_x\.pt")
_Y_FILE = re.compile(r"batch_([0-9]+)_y\.pt")
_SAMPLE_FILE = re.compile(r"sample_([0-9]+)\.pt")


@dataclass(frozen=True)
class BatchFiles:
    """The two files of a batch, and its number."""

    number: int
    x: Path
    y: Path


def is_layers_layout(folder: Path) -> bool:
    """Whether a folder holds `L*/batch_*_x.pt`."""
    return any(_matching(layer.iterdir(), _X_FILE) for _, layer in _layer_folders(folder))


def is_samples_layout(folder: Path) -> bool:
    """Whether a folder holds `sample_0000.pt` and so on."""
    return bool(_matching(folder.iterdir(), _SAMPLE_FILE))


def is_pt_folder(folder: Path) -> bool:
    """Whether a folder holds `.pt` files of either layout."""
    return folder.is_dir() and (is_layers_layout(folder) or is_samples_layout(folder))


def find_batches(folder: Path) -> dict[int, list[BatchFiles]]:
    """Return the batches of each layer that has some, both in the order of their numbers.

    Raises:
        ActivationsError: two names are of one number, layers differ in their batches, or a batch
            has one of its two files.
    """
    # A folder without batches is of no layer, whatever its name.
    with_batches = [
        (number, path)
        for number, path in _layer_folders(folder)
        if _matching(path.iterdir(), _X_FILE)
    ]
    layers: dict[int, list[BatchFiles]] = {}
    first: Path | None = None
    for layer, path in sorted(_numbered(folder, with_batches).items()):
        if layer >= MOST_LAYERS:
            raise ActivationsError(f"{path} is of no layer: they are 0 to {MOST_LAYERS - 1}")
        x = _numbered(path, _matching(path.iterdir(), _X_FILE))
        y = _numbered(path, _matching(path.iterdir(), _Y_FILE))
        if first is not None and x.keys() != _numbers(layers):
            odd = sorted(x.keys() ^ _numbers(layers))
            raise ActivationsError(
                f"{folder}: {path.name} and {first.name} differ in their batches {odd[:5]}: "
                "every layer needs the same ones"
            )
        for number in sorted(x.keys() ^ y.keys()):
            there, missing = (x[number], "y") if number in x else (y[number], "x")
            other = there.with_name(f"{there.stem[:-1]}{missing}.pt")
            raise ActivationsError(f"{other} is missing, and {there.name} is there: copy both")
        first = first or path
        layers[layer] = [BatchFiles(number, x[number], y[number]) for number in sorted(x)]
    return layers


def find_samples(folder: Path) -> dict[int, Path]:
    """Return the sample files of a folder by their numbers, ascending.

    Raises:
        ActivationsError: two names are of one number, or a number is too large.
    """
    files = _numbered(folder, _matching(folder.iterdir(), _SAMPLE_FILE))
    most = max(files)
    if most > INT32_MAX:
        raise ActivationsError(
            f"{files[most]} has a number over {INT32_MAX}, which `sample` cannot hold: "
            "number the files anew"
        )
    return dict(sorted(files.items()))


def _layer_folders(folder: Path) -> list[tuple[int, Path]]:
    found = _matching(folder.iterdir(), _LAYER_DIR)
    return [(number, path) for number, path in found if path.is_dir()]


def _matching(paths: Iterable[Path], name: re.Pattern[str]) -> list[tuple[int, Path]]:
    found = ((name.fullmatch(path.name), path) for path in paths)
    return [(int(match[1]), path) for match, path in found if match]


def _numbered(folder: Path, found: Iterable[tuple[int, Path]]) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for number, path in sorted(found):
        if number in files:
            raise ActivationsError(
                f"{folder} has {files[number].name} and {path.name}, two names of one number: "
                "keep one of them"
            )
        files[number] = path
    return files


def _numbers(layers: dict[int, list[BatchFiles]]) -> set[int]:
    return {batch.number for batch in next(iter(layers.values()))}
