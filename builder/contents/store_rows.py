"""Rows of a capture store, read across its chunks as if it were one array.

A tensor is checked by its checksum when a row of it is first read: its bytes come from the disk for
that, and the rows that are then read are still in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch

from builder.contents.checked_once import checked_in
from builder.contents.spans import spans
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.columns import (
    EXTRA_ROW_TENSORS,
    ID,
    IMAGE,
    KIND,
    NO_IMAGE,
    PATCH_COL,
    PATCH_ROW,
    POSITION,
    SAMPLE,
    SOURCE,
    TOKEN_ID,
    kind_name,
)
from llava_amber_activations.formats.dtypes import dataset_dtype, torch_dtype
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.chunk import Chunk
from llava_amber_activations.store.layout import chunk_path, recipe_chunks
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.store.sums import sums_text


class StoreRows:
    """Reads any rows of any vector of a finished store; one chunk is open at a time.

    Raises:
        ActivationsError: from every reading, a tensor is not as it was written.
    """

    def __init__(self, contents: StoreContents) -> None:
        self._contents = contents
        # float32 holds bfloat16 exactly.
        self._dtype = torch_dtype(contents.dtype)
        self._starts = [0, *accumulate(contents.chunk_rows)]
        self._checked = checked_in(contents.build)
        self._open: tuple[int, Chunk] | None = None
        # Of that chunk's samples. Those of all would travel with every shard to its process.
        self._records: dict[int, SampleRecord] = {}

    def vectors(self, name: str, rows: range) -> Vectors:
        """Read a vector of some rows: [rows, H]."""
        parts = [part.to(self._dtype).numpy() for part in self._parts(name, rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def leading(self, rows: range) -> dict[str, pa.Array]:
        """Read the leading columns of some rows."""
        records = [
            self._records[sample] for part in self._parts(SAMPLE, rows) for sample in part.tolist()
        ]
        extra = self._contents.extra_columns
        own = [name for name in EXTRA_ROW_TENSORS if name in extra]
        columns = {
            SAMPLE: pa.array([record.sample for record in records], pa.int32()),
            ID: pa.array([record.id for record in records], pa.int32()),
            IMAGE: pa.array([record.image or NO_IMAGE for record in records], pa.string()),
            KIND: pa.array([kind_name(code) for code in self._numbers(KIND, rows)], pa.string()),
            **{
                name: pa.array(self._numbers(name, rows))
                for name in (POSITION, TOKEN_ID, PATCH_ROW, PATCH_COL, *own)
            },
        }
        if SOURCE in extra:
            columns[SOURCE] = pa.array([record.source for record in records], pa.string())
        return columns

    def _numbers(self, name: str, rows: range) -> np.ndarray:
        return np.concatenate([part.numpy() for part in self._parts(name, rows)])

    def _parts(self, name: str, rows: range) -> Iterator[torch.Tensor]:
        for number, start, stop in spans(self._starts, rows):
            chunk = self._chunk(number)
            # Format 1.0 has one checksum of all of a chunk.
            key = (number, name if chunk.is_sealed else None)
            self._checked.check(key, partial(chunk.check_tensor, name))
            yield chunk.rows(name, start, stop)

    def _chunk(self, number: int) -> Chunk:
        if self._open is None or self._open[0] != number:
            chunk = Chunk(chunk_path(self._contents.store, number))
            self._open = (number, chunk)
            self._records = {record.sample: record for record in chunk.records}
        return self._open[1]


@dataclass(frozen=True)
class StoreContents:
    """A finished capture store, as `builder.shards.write` wants it.

    Attributes:
        extra_columns: as the recipe has them.
        chunk_rows: rows of each chunk.
        sha256: one checksum of all that the store says of itself, its tensors' checksums included.
        build: names this opening of the store, in whatever process its rows are read.
    """

    store: Path
    dtype: str
    n_layers: int
    width: int
    extra_columns: tuple[str, ...]
    chunk_rows: tuple[int, ...]
    sha256: str
    build: str

    def reader(self, layer: int | None) -> StoreRows:
        """Open the store's rows; they serve every layer."""
        return StoreRows(self)


def store_contents(store: Path, recipe: Recipe, records: Sequence[SampleRecord]) -> StoreContents:
    """Open every chunk of a finished store and check that its rows are those of `samples.jsonl`.

    What the chunks say of their tensors is checked here, and the tensors' bytes as they are read.

    Raises:
        ActivationsError: a chunk is missing or damaged, does not have those rows, its tensors are
            not of the recipe's dtype and width, or there are no rows at all.
    """
    if len(records) != recipe.n_samples:
        raise ActivationsError(
            f"{store}/samples.jsonl has {len(records)} samples, and its recipe {recipe.n_samples}: "
            "delete it, and run the same capture command again to make it anew"
        )
    chunk_rows = []
    digest = hashlib.sha256(sums_text(store).encode())
    for number, samples in enumerate(recipe_chunks(recipe)):
        chunk = Chunk(chunk_path(store, number))
        if chunk.records != [records[sample] for sample in samples]:
            raise ActivationsError(f"{chunk.path} does not hold the samples of samples.jsonl")
        chunk.check_rows(recipe)
        chunk_rows.append(chunk.n_rows)
        digest.update(f"{chunk.identity}\n".encode())
    if not sum(chunk_rows):
        raise ActivationsError(f"{store} holds no rows: every sample was skipped")
    return StoreContents(
        store=store,
        dtype=dataset_dtype(recipe.store_dtype),
        n_layers=recipe.n_layers,
        width=recipe.hidden_size,
        extra_columns=recipe.extra_columns,
        chunk_rows=tuple(chunk_rows),
        sha256=digest.hexdigest(),
        build=uuid4().hex,
    )
