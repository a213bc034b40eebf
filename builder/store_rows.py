"""Rows of a capture store, read across its chunks as if it were one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.spans import spans
from llava_amber_activations.kinds import kind_name
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
from llava_amber_activations.store import Chunk, chunk_path


class StoreRows:
    """Reads any rows of any vector of a finished store; one chunk is open at a time.

    Args:
        store: the capture store.
        chunk_rows: rows of each chunk, in order.
        dtype: float type to return: float16, or float32, which holds bfloat16 exactly.
        ids, images: of each sample.
    """

    def __init__(
        self,
        store: Path,
        chunk_rows: Sequence[int],
        dtype: str,
        ids: Sequence[int],
        images: Sequence[str],
    ) -> None:
        self._store = store
        self._ids = ids
        self._images = images
        self._dtype = torch.float16 if dtype == "float16" else torch.float32
        self._starts = [0, *accumulate(chunk_rows)]
        self._open: tuple[int, Chunk] | None = None

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read a vector of some rows: [rows, H]."""
        parts = [part.to(self._dtype).numpy() for part in self._parts(name, rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Read the leading columns of some rows."""
        sample = self._integers(SAMPLE, rows)
        return {
            SAMPLE: pa.array(sample),
            ID: pa.array([self._ids[number] for number in sample], pa.int32()),
            IMAGE: pa.array([self._images[number] for number in sample], pa.string()),
            KIND: pa.array([kind_name(code) for code in self._integers(KIND, rows)], pa.string()),
            **{
                name: pa.array(self._integers(name, rows))
                for name in (POSITION, TOKEN_ID, PATCH_ROW, PATCH_COL)
            },
        }

    def _integers(self, name: str, rows: range) -> np.ndarray:
        return np.concatenate([part.numpy() for part in self._parts(name, rows)])

    def _parts(self, name: str, rows: range) -> Iterator[torch.Tensor]:
        for number, start, stop in spans(self._starts, rows):
            yield self._chunk(number).rows(name, start, stop)

    def _chunk(self, number: int) -> Chunk:
        if self._open is None or self._open[0] != number:
            self._open = (number, Chunk(chunk_path(self._store, number)))
        return self._open[1]
