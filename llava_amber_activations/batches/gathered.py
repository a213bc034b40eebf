"""Batches and where each of them ends: of rows that are held in memory, or of any other source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from llava_amber_activations.batches.loader_state import Position
from llava_amber_activations.batches.orders import Order
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.streams.parts import Part
from llava_amber_activations.streams.row_choice import RowChoice
from llava_amber_activations.vectors.batch import Batch
from llava_amber_activations.vectors.gather import BatchGather


@dataclass(frozen=True)
class BatchOrder:
    """What decides which rows are in which batch, beside the rows and the ranks."""

    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ActivationsError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ActivationsError(f"seed must be 0 or more, got {self.seed}")


class BatchedRows(Protocol):
    """Rows in batches, in an order that a seed and the epoch decide."""

    def batches(self, part: Part, begin: Position) -> Iterator[tuple[Position, Batch]]:
        """Yield a part's batches of an epoch from `begin` on, and where each of them ends.

        Raises:
            ActivationsError: the part's epoch has no such place.
        """

    def n_batches(self, part: Part) -> int | None:
        """Batches of an epoch, of a part; None where rows are not counted before they are read."""

    def identity(self) -> dict[str, Any]:
        """Say which rows these are: what a saved state must have in common with them."""

    @property
    def n_rows(self) -> int | None:
        """Rows of all parts; None where that is not known before they are read."""

    @property
    def n_left_out(self) -> int | None:
        """Rows that were not chosen; None where that is not known before they are read."""


class RowSource(ABC):
    """What makes batches of its rows by itself, and where they are wanted."""

    @abstractmethod
    def batched(
        self,
        order: BatchOrder,
        choice: RowChoice | None,
        dtype: torch.dtype | None,
        device: torch.device | None,
        *,
        pin_memory: bool,
    ) -> BatchedRows:
        """Return its rows in batches.

        Args:
            choice: what the wanted rows have in common; None where all are wanted.
            dtype: of the batches' vectors; as they are where it is None.
            device: of the batches; where the rows are if it is None.
            pin_memory: whether batches on the CPU are wanted in pinned memory, which the caller
                copies them to.

        Raises:
            ActivationsError: the source cannot do one of these.
        """


class GatheredRows:
    """Rows that an order holds in memory, or decodes, copied into batches.

    Args:
        dtype: of the batches' vectors; that of the rows where it is None.
    """

    def __init__(self, rows: Order, order: BatchOrder, dtype: torch.dtype | None) -> None:
        self._rows = rows
        self._order = order
        self._dtype = dtype
        self._gather = BatchGather(in_parallel=True, dtype=dtype)

    @property
    def n_rows(self) -> int | None:
        return self._rows.n_rows

    @property
    def n_left_out(self) -> int | None:
        return self._rows.n_left_out

    def identity(self) -> dict[str, Any]:
        return self._rows.identity()

    def n_batches(self, part: Part) -> int | None:
        n_rows, order = self._rows.n_rows, self._order
        if n_rows is None:
            return None
        return len(part.batches(n_rows, order.batch_size, drop_last=order.drop_last))

    def batches(self, part: Part, begin: Position) -> Iterator[tuple[Position, Batch]]:
        # What a stream has read is not kept till the next epoch.
        gather = self._gather
        if not self._rows.in_memory:
            gather = BatchGather(in_parallel=False, dtype=self._dtype)
        position = begin
        seed = self._order.seed, begin.epoch
        for parts in self._rows.batches(seed, part, begin.rows_done):
            batch = gather.batch(parts)
            position = position.after(len(next(iter(batch.values()))))
            yield position, batch
