"""Rows of a capture store, read across its chunks as if it were one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from builder.spans import spans
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.kinds import kind_name
from llava_amber_activations.recipe import Recipe
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
    dataset_dtype,
)
from llava_amber_activations.store import Chunk, SampleRecord, chunk_path, recipe_chunks


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


@dataclass(frozen=True)
class StoreContents:
    """A finished capture store, as `builder.shards` wants it.

    Attributes:
        chunk_rows: rows of each chunk.
        ids, images: of each sample.
    """

    store: Path
    dtype: str
    n_layers: int
    width: int
    chunk_rows: tuple[int, ...]
    ids: tuple[int, ...]
    images: tuple[str, ...]

    def reader(self, layer: int | None) -> StoreRows:
        """Open the store's rows; they serve every layer."""
        return StoreRows(self.store, self.chunk_rows, self.dtype, self.ids, self.images)


def store_contents(store: Path, recipe: Recipe, records: Sequence[SampleRecord]) -> StoreContents:
    """Open every chunk of a finished store and check that its rows are those of `samples.jsonl`.

    Raises:
        ActivationsError: a chunk is missing or damaged, does not have those rows, or there are
            no rows at all.
    """
    if len(records) != recipe.n_samples:
        raise ActivationsError(
            f"{store}/samples.jsonl has {len(records)} samples, and its recipe {recipe.n_samples}: "
            "delete it, and run the same capture command again to make it anew"
        )
    chunk_rows = []
    for number, samples in enumerate(recipe_chunks(recipe)):
        chunk = Chunk(chunk_path(store, number))
        if chunk.records != [records[sample] for sample in samples]:
            raise ActivationsError(f"{chunk.path} does not hold the samples of samples.jsonl")
        chunk_rows.append(chunk.n_rows)
    if not sum(chunk_rows):
        raise ActivationsError(f"{store} holds no rows: every sample was skipped")
    return StoreContents(
        store=store,
        dtype=dataset_dtype(recipe.store_dtype),
        n_layers=recipe.n_layers,
        width=recipe.hidden_size,
        chunk_rows=tuple(chunk_rows),
        ids=tuple(record.id for record in records),
        images=tuple(record.image for record in records),
    )
