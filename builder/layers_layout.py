"""The `layers` layout as something a dataset folder is made from."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.pt_files import check_values, read_targets, read_x
from builder.pt_names import BatchFiles, find_batches
from builder.spans import spans
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.kinds import NO_PATCH
from llava_amber_activations.layers import LayerWindow, mlp_out_name, x_name
from llava_amber_activations.safe_pt import check_pt, map_pt
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


@dataclass(frozen=True)
class LayersContents:
    """A folder of the `layers` layout whose files fit together.

    Attributes:
        files: of each batch, of each layer that is there.
        shapes: (samples, positions) of each batch.
        n_layers: of the model.
        file_targets: the most targets of a layer in the files, padding of zeros left out.
        first_target: distance from a layer to its first target in the files, 0 or 1.
        n_targets: the most targets of a layer in its split, which begin at the next layer.
        holders: for each MLP output that is there, the layer whose files hold it.
        n_unchecked: files that have no checksums.
    """

    files: Mapping[int, Sequence[BatchFiles]]
    shapes: tuple[tuple[int, int], ...]
    n_layers: int
    width: int
    file_targets: int
    first_target: int
    n_targets: int
    holders: Mapping[int, int]
    dtype: str
    n_unchecked: int

    @property
    def rows_of_samples(self) -> list[int]:
        """Rows of each sample, in order."""
        return [positions for samples, positions in self.shapes for _ in range(samples)]

    @property
    def is_complete(self) -> bool:
        """Whether every layer that has targets in the files is there."""
        window = LayerWindow(self.n_layers, self.file_targets, self.first_target)
        return tuple(self.files) == tuple(window.sources)

    @property
    def split_layers(self) -> list[int]:
        """The layers that get a split: all that have a target after them."""
        return [layer for layer in self.files if layer < self.n_layers - 1]

    @property
    def all_names(self) -> list[str]:
        """Each vector that the folder holds, once."""
        return [*map(x_name, self.files), *map(mlp_out_name, self.holders)]

    def targets(self, layer: int) -> range:
        """Return the layers of the targets of a layer's split."""
        return LayerWindow(self.n_layers, self.n_targets).targets(layer)

    def file_targets_of(self, layer: int) -> range:
        """Return the layers of the targets that a layer's files hold."""
        return LayerWindow(self.n_layers, self.file_targets, self.first_target).targets(layer)

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
        """Return `x` or `mlp_out` of layer `number`, from the layer's own files or a holder's."""
        contents = self._contents
        if kind == "x":
            return self._file(contents.files[number][batch].x, batch, x=True)[0]
        own = () if self._layer is None else contents.file_targets_of(self._layer)
        holder = self._layer if self._layer is not None and number in own else None
        holder = contents.holders[number] if holder is None else holder
        targets = self._file(contents.files[holder][batch].y, batch, x=False)
        return targets[number - holder - contents.first_target]

    def _file(self, path: Path, batch: int, x: bool) -> list[torch.Tensor]:
        if batch != self._open_batch:
            self._open.clear()
            self._open_batch = batch
        if path not in self._open:
            self._open[path] = [read_x(path, map_pt)] if x else read_targets(path, map_pt)
        return self._open[path]

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
    n_unchecked: int


def scan_layers(
    folder: Path, known_layers: int | None = None, first_target: int = 1
) -> LayersContents:
    """Look at every file of a folder and check that they fit together.

    Args:
        known_layers: layers of the model; the fewest that the files allow if None.
        first_target: 1 where a layer's first target is the next layer's MLP output, 0 where it is
            its own.

    Raises:
        ActivationsError: a file cannot be read, a batch lacks one of its two files, layers differ
            in their batches, shapes, number of targets, or in a target that they share, or the
            files are not of a model with `known_layers`.
    """
    files = find_batches(folder)
    first = next(iter(files))
    scans = {}
    for layer, batches in files.items():
        scans[layer] = _scan_layer(folder, layer, batches)
        for field in ("shapes", "width"):
            ours, theirs = getattr(scans[layer], field), getattr(scans[first], field)
            if ours != theirs:
                raise ActivationsError(
                    f"{folder}: L{layer} has {field} {ours} and L{first} has {theirs}: "
                    "every layer needs the same samples and positions"
                )
    n_layers = max(layer + first_target + scan.n_targets for layer, scan in scans.items())
    if known_layers is not None:
        if known_layers < n_layers:
            raise ActivationsError(
                f"{folder} holds the MLP output of layer {n_layers - 1}, so the model has more "
                f"than {known_layers} layers: give its own --n-layers and --first-target"
            )
        n_layers = known_layers
    file_targets = max(scan.n_targets for scan in scans.values())
    window = LayerWindow(n_layers, file_targets, first_target)
    holders: dict[int, int] = {}
    for layer, scan in scans.items():
        targets = window.targets(layer)
        if scan.n_targets != len(targets):
            raise ActivationsError(
                f"{folder}: L{layer} has {scan.n_targets} targets, where the other layers let "
                f"{len(targets)} be expected in a model of {n_layers} layers"
            )
        # Of several, the nearest layer: ascending, the last.
        holders |= dict.fromkeys(targets, layer)
    for batch in range(len(files[first])):
        _check_shared_targets(folder, files, batch, scans, first_target)
    return LayersContents(
        files=files,
        shapes=scans[first].shapes,
        n_layers=n_layers,
        width=scans[first].width,
        file_targets=file_targets,
        first_target=first_target,
        n_targets=_split_targets(folder, list(files), holders, n_layers, file_targets),
        holders=dict(sorted(holders.items())),
        dtype="float16" if all(scan.half for scan in scans.values()) else "float32",
        n_unchecked=sum(scan.n_unchecked for scan in scans.values()),
    )


def _split_targets(
    folder: Path, layers: Sequence[int], held: Container[int], n_layers: int, most: int
) -> int:
    """Return the most targets, from the next layer on, that are there for every layer.

    Files whose targets begin at the layer itself hold one fewer of them, unless the layers after
    it are there too.
    """
    sources = [layer for layer in layers if layer < n_layers - 1]
    if not sources:
        raise ActivationsError(
            f"{folder} holds only the last layer of a model of {n_layers}, and a layer's split "
            "holds the targets from the next layer on: add the files of other layers"
        )
    for n_targets in range(most, 0, -1):
        window = LayerWindow(n_layers, n_targets)
        if all(target in held for source in sources for target in window.targets(source)):
            return n_targets
    lacking = next(layer for layer in sources if layer + 1 not in held)
    raise ActivationsError(
        f"{folder} holds no MLP output of the layer after L{lacking}, and a layer's split holds "
        f"the targets from the next layer on: add the files of L{lacking + 1}, or take away those "
        f"of L{lacking}"
    )


def _check_shared_targets(
    folder: Path,
    files: Mapping[int, Sequence[BatchFiles]],
    batch: int,
    scans: Mapping[int, _LayerScan],
    first_target: int,
) -> None:
    """Check that the MLP output of a layer is the same wherever it is a target."""
    seen: dict[int, tuple[int, torch.Tensor]] = {}
    for layer, scan in scans.items():
        targets = read_targets(files[layer][batch].y, map_pt)[: scan.n_targets]
        for number, target in enumerate(targets, start=layer + first_target):
            earlier, expected = seen.setdefault(number, (layer, target))
            if earlier != layer and not _equal(target, expected):
                raise ActivationsError(
                    f"{folder}: batch {files[layer][batch].number} of L{earlier} and L{layer} "
                    f"differ in the MLP output of layer {number}: their samples are not the same, "
                    "or not in one order"
                )


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype:
        # Exact: float32 holds every value of the other two.
        return torch.equal(first.float(), second.float())
    return torch.equal(first, second)


def _scan_layer(folder: Path, layer: int, batches: Sequence[BatchFiles]) -> _LayerScan:
    shapes: list[tuple[int, int]] = []
    widths, counts, dtypes = set(), set(), set()
    n_targets = n_unchecked = n_samples = 0
    for batch in batches:
        n_unchecked += sum(not check_pt(path) for path in (batch.x, batch.y))
        x, targets = read_x(batch.x, map_pt), read_targets(batch.y, map_pt)
        for number, target in enumerate(targets):
            if target.shape != x.shape:
                raise ActivationsError(
                    f"targets[{number}] of {batch.y} has the shape {list(target.shape)} and its x "
                    f"{list(x.shape)}: they must be equal"
                )
        check_values(x, batch.x, "x", n_samples)
        for number, target in enumerate(targets):
            check_values(target, batch.y, f"targets[{number}]", n_samples)
        shapes.append((x.shape[0], x.shape[1]))
        n_samples += x.shape[0]
        widths.add(x.shape[2])
        counts.add(len(targets))
        dtypes |= {x.dtype, *(target.dtype for target in targets)}
        n_targets = max(n_targets, _without_padding(targets))
    if len(widths) > 1 or len(counts) > 1:
        raise ActivationsError(
            f"{folder}: the batches of L{layer} differ in width {sorted(widths)} "
            f"or in their number of targets {sorted(counts)}"
        )
    half = dtypes == {torch.float16}
    return _LayerScan(tuple(shapes), widths.pop(), n_targets, half, n_unchecked)


def _without_padding(targets: list[torch.Tensor]) -> int:
    """Return how many targets there are when zeros past the last layer are not counted."""
    n = len(targets)
    while n > 1 and not targets[n - 1].any():
        n -= 1
    return n
