"""Rows of a capture store, read across its chunks as if it were one array."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from llava_amber_activations.schema import Vectors
from llava_amber_activations.store import Chunk, SampleRecord, chunk_path


class StoreRows:
    """Reads any rows of any vector of a finished store; one chunk is open at a time.

    Args:
        store: the capture store.
        chunk_rows: rows of each chunk, in order.
        dtype: float type to return: float16, or float32, which holds bfloat16 exactly.
    """

    def __init__(self, store: Path, chunk_rows: tuple[int, ...], dtype: str) -> None:
        self._store = store
        self._dtype = torch.float16 if dtype == "float16" else torch.float32
        self._starts = [0, *accumulate(chunk_rows)]
        self._open: tuple[int, Chunk] | None = None

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read a vector of some rows: [rows, H]."""
        parts = [part.to(self._dtype).numpy() for part in self._parts(name, rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def integers(self, name: str, rows: range) -> np.ndarray:
        """Read `sample`, `position` or `token_id` of some rows: int32 [rows]."""
        return np.concatenate([part.numpy() for part in self._parts(name, rows)])

    def _parts(self, name: str, rows: range) -> Iterator[torch.Tensor]:
        start = rows.start
        while start < rows.stop:
            number = bisect_right(self._starts, start) - 1
            stop = min(rows.stop, self._starts[number + 1])
            offset = self._starts[number]
            yield self._chunk(number).rows(name, start - offset, stop - offset)
            start = stop

    def _chunk(self, number: int) -> Chunk:
        if self._open is None or self._open[0] != number:
            self._open = (number, Chunk(chunk_path(self._store, number)))
        return self._open[1]


def rows_of_chunks(records: list[SampleRecord], chunks: list[range]) -> tuple[int, ...]:
    """Return how many rows each chunk holds."""
    return tuple(sum(records[sample].n_rows for sample in chunk) for chunk in chunks)
