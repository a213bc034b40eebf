"""The rows of one chunk on the device, in the order of the query file, copied where they go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capture.live.wanted import Tapped, WantedVectors
from capture.samples.queries import Query
from capture.sink.chunk import GatheredBatch
from capture.sink.joining import FiniteVectors
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import (
    ID,
    KIND,
    NUMBERED,
    POSITION,
    SAMPLE,
    STRINGS,
    kind_codes,
)
from llava_amber_activations.streams.row_choice import RowChoice
from llava_amber_activations.vectors.finite import finite_rows

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RowFilter:
    """Which rows are wanted, told from their columns and their samples.

    Attributes:
        choice: what they have in common; None where all are wanted.
        queries: of each sample.
    """

    choice: RowChoice | None
    queries: Mapping[int, Query]

    def may_have(self, query: Query) -> bool:
        """Whether a sample may have a wanted row."""
        asked = () if self.choice is None else self.choice.values
        return all(
            _of_query(query, name) in values for name, values in asked if name in _OF_A_QUERY
        )

    def rows_of(self, columns: Mapping[str, torch.Tensor]) -> npt.NDArray[np.bool_]:
        """Return of each row of these columns whether it is wanted: bool [rows].

        Raises:
            ActivationsError: rows have no such column here.
        """
        sample = columns[SAMPLE].numpy()
        wanted = np.ones(len(sample), np.bool_)
        if self.choice is None:
            return wanted
        for name, values in self.choice.values:
            if name in _OF_A_QUERY:
                met = [s for s in np.unique(sample) if _of_query(self.queries[s], name) in values]
                wanted &= np.isin(sample, met)
            elif name not in columns:
                raise ActivationsError(f"these rows have no column {name} to be chosen by")
            else:
                codes = kind_codes(map(str, values)) if name == KIND else values
                wanted &= np.isin(columns[name].numpy(), codes)
        if self.choice.skip_first:
            wanted &= columns[POSITION].numpy() != 0
        return wanted


_OF_A_QUERY = (SAMPLE, ID, *(name for name in STRINGS if name != KIND))


def _of_query(query: Query, name: str) -> Any:
    # What a sample does not have, its rows have as an empty text.
    return getattr(query, name, None) or (0 if name in (SAMPLE, ID) else "")


@dataclass(frozen=True)
class KeptBatch:
    """What is kept of a forward pass.

    Attributes:
        vectors: [tapped, rows, H], on the device, as the taps gathered them; the wanted rows alone.
        columns: of these rows, int32 [rows] each (and float32), on the CPU.
        sample: of every row that the pass gave, int32.
        finite: of each wanted vector, whether each of those rows is finite, bool [vectors, rows].
        skipped: why samples could not be run.
    """

    vectors: torch.Tensor | None
    columns: Tensors
    sample: torch.Tensor
    finite: torch.Tensor | None
    skipped: Mapping[int, str]


def keep_wanted(
    wanted: WantedVectors, row_filter: RowFilter
) -> Callable[[GatheredBatch], KeptBatch]:
    """Return what makes of a pass what is kept of it."""
    slots = wanted.slots(tuple(wanted.all))

    def keep(batch: GatheredBatch) -> KeptBatch:
        vectors, columns = batch.vectors, batch.columns
        if vectors is None:
            nothing = torch.empty(0, dtype=torch.int32)
            return KeptBatch(None, {}, nothing, None, batch.prepared.skipped)
        sample = columns[SAMPLE]
        is_finite = finite_rows if vectors.device.type == "cpu" else _finite_on_device
        finite = torch.stack([is_finite(vectors[slot]) for slot in slots])
        if row_filter.choice is not None:
            rows = torch.from_numpy(np.flatnonzero(row_filter.rows_of(columns)))
            columns = {name: column[rows] for name, column in columns.items()}
            vectors = vectors.index_select(1, rows.to(vectors.device))
        return KeptBatch(vectors, columns, sample, finite, batch.prepared.skipped)

    return keep


def _finite_on_device(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.isfinite().all(dim=-1)


class ChunkRows:
    """The wanted rows of a chunk, in the order of sample and position.

    Args:
        batches: of the chunk, in any order.
        ids: of each sample.
        dtype: of the vectors.

    Raises:
        ActivationsError: a vector is not finite; the message names it and its sample.
    """

    def __init__(
        self,
        batches: Sequence[KeptBatch],
        wanted: WantedVectors,
        ids: Mapping[int, int],
        dtype: torch.dtype,
    ) -> None:
        _check_finite(batches, wanted, dtype)
        self._wanted = wanted
        self._filled = [batch for batch in batches if len(batch.columns.get(SAMPLE, ()))]
        joined: Tensors = {}
        for name in self._filled[0].columns if self._filled else ():
            joined[name] = torch.cat([batch.columns[name] for batch in self._filled])
        sample = joined.get(SAMPLE, torch.empty(0, dtype=torch.int32))
        order = torch.argsort(sample, stable=True)
        # Of each row of the batches, one after the other, where it comes.
        self._place = torch.empty_like(order)
        self._place[order] = torch.arange(len(order))
        joined[ID] = torch.tensor([ids[each] for each in sample.tolist()], dtype=torch.int32)
        self._columns = {name: joined[name][order] for name in NUMBERED if name in joined}

    def __len__(self) -> int:
        return len(self._place)

    @property
    def columns(self) -> Tensors:
        """What is said of the rows, [rows] each, on the CPU."""
        return self._columns

    def copy(self, start: int, stop: int, out: Mapping[str, torch.Tensor]) -> None:
        """Copy the rows `start` to `stop` into tensors of as many rows, on the device.

        Args:
            out: by their names in a batch: every vector, and what is wanted of `columns`.
        """
        for name in out.keys() - self._wanted.named.keys():
            out[name].copy_(self._columns[name][start:stop])
        first = 0
        for batch in self._filled:
            assert batch.vectors is not None
            place = self._place[first : first + batch.vectors.shape[1]]
            first += len(place)
            rows = ((place >= start) & (place < stop)).nonzero().flatten()
            to = (place[rows] - start).to(batch.vectors.device)
            vectors = batch.vectors
            if len(rows) < len(place):
                vectors = vectors.index_select(1, rows.to(vectors.device))
            for name, tapped in self._wanted.named.items():
                slots = self._wanted.slots(tapped)
                if isinstance(tapped, Tapped):
                    out[name].index_copy_(0, to, vectors[slots[0]])
                    continue
                for number, slot in enumerate(slots):
                    out[name][:, number].index_copy_(0, to, vectors[slot])


def _check_finite(batches: Sequence[KeptBatch], wanted: WantedVectors, dtype: torch.dtype) -> None:
    """Check that the wanted vectors are finite, in every row, as a store's are checked."""
    said = [batch.finite for batch in batches if batch.finite is not None]
    if not said or all(bool(each.all()) for each in said):
        return
    finite = torch.cat([each.cpu() for each in said], dim=1)
    sample = torch.cat([batch.sample for batch in batches if batch.finite is not None])
    order = torch.argsort(sample, stable=True)
    known: Tensors = {}
    for tapped, of_rows in zip(wanted.all, finite, strict=True):
        known[tapped.name] = known.get(tapped.name, of_rows[order]) & of_rows[order]
    FiniteVectors(wanted.layers, dtype, sample[order], known).conclude()
