"""Rows of files that follow one another, of which few are open at a time, and each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from builder.contents.contents import VectorForm
from builder.contents.spans import spans
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.dtypes import torch_dtype


class PartedContents(VectorForm, Protocol):
    """What a dataset folder is made from, in parts."""

    @property
    def part_rows(self) -> Sequence[int]:
        """Rows of each part, in order."""

    def open_part(self, number: int) -> Mapping[str, torch.Tensor]:
        """Check a part, all of it, and return its vectors by their names: [rows, H].

        Raises:
            ActivationsError: it is not as it should be.
        """

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Return the leading columns of some rows, which need no part."""


class OpenParts:
    """The parts that are open now, read as what shards are made from."""

    def __init__(self, contents: PartedContents) -> None:
        self.dtype = contents.dtype
        self.n_layers = contents.n_layers
        self.width = contents.width
        self.extra_columns = contents.extra_columns
        self.starts = [0, *accumulate(contents.part_rows)]
        self._contents = contents
        self._dtype = torch_dtype(contents.dtype)
        self._open: dict[int, Mapping[str, torch.Tensor]] = {}

    def add(self, number: int, part: Mapping[str, torch.Tensor]) -> None:
        """Take a part that has been opened."""
        self._open[number] = part

    def close_before(self, row: int) -> None:
        """Close the parts that hold no row from `row` on."""
        for number in [n for n in self._open if self.starts[n + 1] <= row]:
            del self._open[number]

    def reader(self, layer: int | None) -> OpenParts:
        """Return what reads any layer: itself."""
        return self

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read a vector of some rows: [rows, H]; without a copy where they are of one part."""
        pieces = [
            self._open[number][name][start:stop].to(self._dtype).numpy()
            for number, start, stop in spans(self.starts, rows)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Read the leading columns of some rows."""
        return self._contents.leading(rows)
