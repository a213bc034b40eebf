"""What shards are made from, wherever it is read: a capture store, or a folder of `.pt` files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from llava_amber_activations.formats.arrow_vectors import Vectors


class RowReader(Protocol):
    """Reads any rows of what a shard is made from."""

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read a vector of some rows: [rows, H] of the dataset's dtype."""

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Read the leading columns of some rows."""


class VectorForm(Protocol):
    """What vectors of a dataset folder look like."""

    @property
    def dtype(self) -> str:
        """Float type of the folder's vectors."""

    @property
    def n_layers(self) -> int:
        """Layers of the model."""

    @property
    def width(self) -> int:
        """Length of every vector."""

    @property
    def extra_columns(self) -> Sequence[str]:
        """Which columns of `EXTRA` the rows have."""


class Contents(VectorForm, Protocol):
    """What a dataset folder is made from; sent to every process that writes shards."""

    def reader(self, layer: int | None) -> RowReader:
        """Open what a layer's split, or `all_layers` where it is None, is made from."""
