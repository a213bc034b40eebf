"""The `layers` layout as something a dataset folder is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.contents.spans import spans
from builder.pt.names import BatchFiles
from builder.pt.values import read_targets, read_x
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import (
    ID,
    IMAGE,
    KIND,
    NO_PATCH,
    PATCH_COL,
    PATCH_ROW,
    POSITION,
    SAMPLE,
    TOKEN_ID,
)
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.formats.layers import LayerWindow, mlp_out_name, x_name
from llava_amber_activations.parsing.safe_pt import map_pt


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
            parts.append(flat.to(torch_dtype(self._contents.dtype)).numpy())
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
