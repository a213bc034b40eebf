"""The `layers` layout as something a dataset folder is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.pt_files import check_values, read_targets, read_x, x_path, y_path
from builder.spans import spans
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.kinds import NO_PATCH
from llava_amber_activations.layers import LayerWindow, mlp_out_name, x_name
from llava_amber_activations.schema import (
    ID,
    IMAGE,
    KIND,
    PATCH_COL,
    PATCH_ROW,
    POSITION,
    SAMPLE,
    TOKEN_ID,
    Vectors,
)

_LAYER_DIR = re.compile(r"L(\d+)")
_X_FILE = re.compile(r"batch_(\d+)_x\.pt")


def is_layers_layout(folder: Path) -> bool:
    """Whether a folder holds `L*/batch_*_x.pt`."""
    return bool(_batch_numbers(folder))


def _batch_numbers(folder: Path) -> dict[int, list[int]]:
    """Return the batches of each layer's folder, in the order of their numbers."""
    layers = {}
    for path in folder.iterdir():
        match = _LAYER_DIR.fullmatch(path.name)
        if match and path.is_dir():
            found = (_X_FILE.fullmatch(file.name) for file in path.iterdir())
            layers[int(match[1])] = sorted(int(file[1]) for file in found if file)
    return {layer: layers[layer] for layer in sorted(layers) if layers[layer]}


@dataclass(frozen=True)
class LayersContents:
    """A folder of the `layers` layout whose files fit together.

    Attributes:
        layers: that are there.
        batches: numbers of the batches, the same in every layer.
        shapes: (samples, positions) of each batch.
        n_targets: the most targets of a layer, padding of zeros left out.
    """

    folder: Path
    layers: tuple[int, ...]
    batches: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    n_layers: int
    width: int
    n_targets: int
    dtype: str

    @property
    def rows_of_samples(self) -> list[int]:
        """Rows of each sample, in order."""
        return [positions for samples, positions in self.shapes for _ in range(samples)]

    @property
    def is_complete(self) -> bool:
        """Whether every layer that has targets is there."""
        return self.layers == tuple(LayerWindow(self.n_layers, self.n_targets).sources)

    @property
    def all_names(self) -> list[str]:
        """Each vector that the folder holds once: x of every layer, mlp_out of the one after it."""
        return [*map(x_name, self.layers), *(mlp_out_name(layer + 1) for layer in self.layers)]

    def targets(self, layer: int) -> range:
        """Return the layers of a layer's targets."""
        return LayerWindow(self.n_layers, self.n_targets).targets(layer)

    def reader(self, layer: int | None) -> LayersRows:
        """Open a layer's own files, or those of all layers."""
        return LayersRows(self, layer)


class LayersRows:
    """Reads rows across the batch files of a layer, or of all; files are mapped, not loaded."""

    def __init__(self, contents: LayersContents, layer: int | None) -> None:
        self._contents = contents
        self._layer = layer
        counts = [samples * positions for samples, positions in contents.shapes]
        self._starts = [0, *accumulate(counts)]
        self._open: dict[Path, list[torch.Tensor]] = {}
        self._open_batch = -1

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read a vector of some rows: [rows, H]."""
        kind, _, number = name.rpartition("_")
        parts = []
        for batch, start, stop in spans(self._starts, rows):
            tensor = self._tensor(kind, int(number), batch)
            flat = tensor.reshape(-1, self._contents.width)[start:stop]
            parts.append(flat.to(getattr(torch, self._contents.dtype)).numpy())
        return np.concatenate(parts)

    def _tensor(self, kind: str, number: int, batch: int) -> torch.Tensor:
        """Return `x` or `mlp_out` of layer `number`, from the layer's own files or a source's."""
        if kind == "x":
            return self._file(number, batch, x=True)[0]
        source = number - 1 if self._layer is None else self._layer
        return self._file(source, batch, x=False)[number - source - 1]

    def _file(self, layer: int, batch: int, x: bool) -> list[torch.Tensor]:
        if batch != self._open_batch:
            self._open.clear()
            self._open_batch = batch
        name = (x_path if x else y_path)(
            self._contents.folder, layer, self._contents.batches[batch]
        )
        if name not in self._open:
            self._open[name] = [read_x(name)] if x else read_targets(name)
        return self._open[name]

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Return the leading columns: what the files do not say is made up as the card tells."""
        contents = self._contents
        counts = np.array(contents.rows_of_samples)
        sample = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        position = (np.arange(len(sample)) - first).astype(np.int32)
        chosen = slice(rows.start, rows.stop)
        return {
            SAMPLE: pa.array(sample[chosen]),
            ID: pa.array(sample[chosen]),
            IMAGE: pa.array([""] * len(rows), pa.string()),
            POSITION: pa.array(position[chosen]),
            TOKEN_ID: pa.array(np.full(len(rows), -1, dtype=np.int32)),
            KIND: pa.array([""] * len(rows), pa.string()),
            PATCH_ROW: pa.array(np.full(len(rows), NO_PATCH, dtype=np.int32)),
            PATCH_COL: pa.array(np.full(len(rows), NO_PATCH, dtype=np.int32)),
        }


@dataclass(frozen=True)
class _LayerScan:
    shapes: tuple[tuple[int, int], ...]
    width: int
    n_targets: int
    half: bool


def scan_layers(folder: Path, known_layers: int = 0) -> LayersContents:
    """Look at every file of a folder and check that they fit together.

    Args:
        known_layers: layers of the model, where it is known that there are more than the files
            show.

    Raises:
        ActivationsError: a file cannot be read, a batch lacks one of its two files, or layers
            differ in their batches, shapes, number of targets, or in a target that they share.
    """
    numbers = _batch_numbers(folder)
    layers = tuple(numbers)
    first = layers[0]
    scans = {}
    for layer, batches in numbers.items():
        if batches != numbers[first]:
            odd = sorted(set(batches) ^ set(numbers[first]))
            raise ActivationsError(
                f"{folder}: L{layer} and L{first} differ in their batches {odd[:5]}: "
                "every layer needs the same ones"
            )
        scans[layer] = _scan_layer(folder, layer, batches)
        for field in ("shapes", "width"):
            ours, theirs = getattr(scans[layer], field), getattr(scans[first], field)
            if ours != theirs:
                raise ActivationsError(
                    f"{folder}: L{layer} has {field} {ours} and L{first} has {theirs}: "
                    "every layer needs the same samples and positions"
                )
    seen_layers = 1 + max(layer + scan.n_targets for layer, scan in scans.items())
    n_layers = max(seen_layers, known_layers)
    n_targets = max(scan.n_targets for scan in scans.values())
    window = LayerWindow(n_layers, n_targets)
    for layer, scan in scans.items():
        if scan.n_targets != len(window.targets(layer)):
            raise ActivationsError(
                f"{folder}: L{layer} has {scan.n_targets} targets, where the other layers let "
                f"{len(window.targets(layer))} be expected"
            )
    for batch in numbers[first]:
        _check_shared_targets(folder, batch, scans)
    return LayersContents(
        folder=folder,
        layers=layers,
        batches=tuple(numbers[first]),
        shapes=scans[first].shapes,
        n_layers=n_layers,
        width=scans[first].width,
        n_targets=n_targets,
        dtype="float16" if all(scan.half for scan in scans.values()) else "float32",
    )


def _check_shared_targets(folder: Path, batch: int, scans: Mapping[int, _LayerScan]) -> None:
    """Check that the MLP output of a layer is the same wherever it is a target."""
    seen: dict[int, tuple[int, torch.Tensor]] = {}
    for layer, scan in scans.items():
        targets = read_targets(y_path(folder, layer, batch))[: scan.n_targets]
        for number, target in enumerate(targets, start=layer + 1):
            earlier, expected = seen.setdefault(number, (layer, target))
            if earlier != layer and not torch.equal(target, expected):
                raise ActivationsError(
                    f"{folder}: batch {batch} of L{earlier} and L{layer} differ in the MLP output "
                    f"of layer {number}: their samples are not the same, or not in one order"
                )


def _scan_layer(folder: Path, layer: int, batches: list[int]) -> _LayerScan:
    shapes: list[tuple[int, int]] = []
    widths, counts, dtypes = set(), set(), set()
    n_targets = 0
    for batch in batches:
        path = y_path(folder, layer, batch)
        x, targets = read_x(x_path(folder, layer, batch)), read_targets(path)
        for number, target in enumerate(targets):
            if target.shape != x.shape:
                raise ActivationsError(
                    f"targets[{number}] of {path} has the shape {list(target.shape)} and its x "
                    f"{list(x.shape)}: they must be equal"
                )
        check_values(x, x_path(folder, layer, batch))
        for target in targets:
            check_values(target, path)
        shapes.append((x.shape[0], x.shape[1]))
        widths.add(x.shape[2])
        counts.add(len(targets))
        dtypes |= {x.dtype, *(target.dtype for target in targets)}
        n_targets = max(n_targets, _without_padding(targets))
    if len(widths) > 1 or len(counts) > 1:
        raise ActivationsError(
            f"{folder}: the batches of L{layer} differ in width {sorted(widths)} "
            f"or in their number of targets {sorted(counts)}"
        )
    return _LayerScan(tuple(shapes), widths.pop(), n_targets, dtypes == {torch.float16})


def _without_padding(targets: list[torch.Tensor]) -> int:
    """Return how many targets there are when zeros past the last layer are not counted."""
    n = len(targets)
    while n > 1 and not targets[n - 1].any():
        n -= 1
    return n
