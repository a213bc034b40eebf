"""Batches of torch tensors out of a layer's dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.layer_stream import LayerStream, stream_of
from llava_amber_activations.schema import TARGETS, arrow_to_targets, arrow_to_vectors

Batch = dict[str, torch.Tensor]

# Rows that are mixed with one another when a stream is shuffled: 70 to 600 MB of them, by the
# number of targets. Two batches at least, or a batch would be a run of row groups.
_WINDOW_ROWS = 4096


def activation_batches(
    dataset: datasets.Dataset | datasets.IterableDataset,
    batch_size: int = 4096,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> ActivationBatches:
    """Return the batches of a layer: of what `load_activations`, or `load_dataset`, returned.

    Vectors go from Arrow's buffers into tensors of their own dtype (float16 stays float16), never
    through Python lists; the tensors are the caller's own to change.

    Args:
        dataset: one split, prepared or streaming.
        batch_size: rows of a batch, B.
        shuffle: visit a prepared dataset's rows in random order; a stream's row groups in random
            order, and its rows mixed over 4096 of them (two batches where those are more).
        seed: of the order; `set_epoch` gives another one for every epoch.
        drop_last: leave out a last batch of fewer rows.

    Returns:
        An iterable of `{'x': [B, H], 'targets': [B, n, H], 'sample': [B], …}`: every column but the
        strings; integers are int32. For `torch.utils.data.DataLoader`, pass `batch_size=None`.

    Raises:
        ActivationsError: `dataset` is not one split.
    """
    order: _Order
    if isinstance(dataset, datasets.Dataset):
        order = _PreparedOrder(dataset, batch_size, shuffle)
    elif not isinstance(dataset, datasets.IterableDataset):
        raise ActivationsError(
            f"activation_batches takes one split, not a {type(dataset).__name__}: choose a layer, "
            'as in dataset["L5"]'
        )
    elif (stream := stream_of(dataset)) is not None:
        order = _LayerOrder(stream, batch_size, shuffle)
    else:
        order = _StreamOrder(dataset, batch_size, shuffle)
    return ActivationBatches(order, batch_size, seed=seed, drop_last=drop_last)


class ActivationBatches(IterableDataset[Batch]):
    """Batches in an order that `seed` and the epoch decide, whose position can be saved.

    `state_dict` after any batch, and `load_state_dict` on new batches of the same dataset and
    arguments, go on with the next row: none is dropped, none comes twice. With worker processes
    each worker has its own rows and its own state, as torchdata's `StatefulDataLoader` keeps them.
    """

    def __init__(self, order: _Order, batch_size: int, *, seed: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise ActivationsError(f"batch_size must be at least 1, got {batch_size}")
        self._order = order
        self._batch_size = batch_size
        self._seed = seed
        self._drop_last = drop_last
        self._epoch = 0
        self._rows_done = 0
        self._resume = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return where this process is: what the order depends on, and the rows of it done."""
        worker, n_workers = _worker()
        return {
            "seed": self._seed,
            "batch_size": self._batch_size,
            "worker": worker,
            "n_workers": n_workers,
            "epoch": self._epoch,
            "rows_done": self._rows_done,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on, at the next iteration, where `state` was taken.

        Raises:
            ActivationsError: it was taken with another seed, batch size or number of workers.
        """
        ours = self.state_dict()
        different = [
            f"{key} ({ours[key]}, not {state.get(key)})"
            for key in ("seed", "batch_size", "worker", "n_workers")
            if ours[key] != state.get(key)
        ]
        if different:
            raise ActivationsError(
                f"the saved state is of batches with another {', '.join(different)}: "
                "their order is not this one"
            )
        self._epoch = state["epoch"]
        self._rows_done = state["rows_done"]
        self._resume = True

    def __iter__(self) -> Iterator[Batch]:
        if not self._resume:
            self._rows_done = 0
        self._resume = False
        worker, n_workers = _worker()
        seed = (self._seed, self._epoch)
        blocks = self._order.blocks(seed, worker, n_workers, self._rows_done)
        for batch in _rebatched(blocks, self._batch_size):
            n_rows = len(next(iter(batch.values())))
            if n_rows < self._batch_size and self._drop_last:
                return
            self._rows_done += n_rows
            yield batch


class _Order(Protocol):
    """Rows in an order that a seed decides."""

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield a worker's rows, some at a time, from its row `skip` on."""


class _PreparedOrder:
    """A prepared dataset: batches are dealt out to the workers in turn."""

    def __init__(self, dataset: datasets.Dataset, batch_size: int, shuffle: bool) -> None:
        self._dataset = dataset.with_format("arrow")
        self._batch_size = batch_size
        self._shuffle = shuffle

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Batch]:
        n_rows, size = len(self._dataset), self._batch_size
        order = np.random.default_rng(seed).permutation(n_rows) if self._shuffle else None
        first = worker + n_workers * (skip // size)
        into = skip % size
        for start in range(first * size, n_rows, n_workers * size):
            rows = slice(start + into, min(start + size, n_rows))
            into = 0
            yield table_to_tensors(self._dataset[rows if order is None else order[rows]])


class _LayerOrder:
    """A stream that `load_activations` opened: read from its shards, row group by row group."""

    def __init__(self, stream: LayerStream, batch_size: int, shuffle: bool) -> None:
        self._stream = stream
        self._window_rows = max(_WINDOW_ROWS, 2 * batch_size)
        self._shuffle = shuffle

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Batch]:
        if self._shuffle:
            tables = self._stream.mixed_tables(worker, n_workers, skip, seed, self._window_rows)
        else:
            tables = self._stream.tables(worker, n_workers, skip)
        yield from map(table_to_tensors, tables)


class _StreamOrder:
    """Any other stream of `datasets`, in the order that it has or shuffles itself into.

    Where its rows begin is not known from outside, so going on after some reads those again.
    """

    def __init__(self, dataset: datasets.IterableDataset, batch_size: int, shuffle: bool) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Batch]:
        dataset: Any = self._dataset
        if n_workers > 1:
            if dataset.num_shards < n_workers:
                dataset = dataset.reshard()
            n_parts = min(n_workers, dataset.num_shards)
            if worker >= n_parts:
                return
            dataset = dataset.shard(num_shards=n_parts, index=worker)
        if self._shuffle:
            buffer_size = max(_WINDOW_ROWS, 2 * self._batch_size)
            # One seed of two: datasets takes a single number.
            mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            dataset = dataset.shuffle(seed=mixed, buffer_size=buffer_size)
        for table in dataset.with_format("arrow").iter(self._batch_size):
            if skip < len(table):
                yield table_to_tensors(table.slice(skip))
            skip = max(0, skip - len(table))


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _rebatched(blocks: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """Cut and join blocks of rows into batches; the last one may be smaller."""
    pending: list[Batch] = []
    n_pending = 0
    for block in blocks:
        n_rows = len(next(iter(block.values())))
        start = 0
        while n_pending + n_rows - start >= batch_size:
            stop = start + batch_size - n_pending
            yield _joined([*pending, _rows(block, start, stop)])
            pending, n_pending, start = [], 0, stop
        if start < n_rows:
            pending.append(_rows(block, start, n_rows))
            n_pending += n_rows - start
    if pending:
        yield _joined(pending)


def _rows(block: Batch, start: int, stop: int) -> Batch:
    return {name: tensor[start:stop] for name, tensor in block.items()}


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def table_to_tensors(table: pa.Table) -> Batch:
    """Copy a table's numbers into tensors: vectors [B, H], targets [B, n, H], integers [B]."""
    tensors = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_fixed_size_list(field.type):
            values = arrow_to_vectors(column)
        elif field.name == TARGETS:
            values = arrow_to_targets(column)
        elif pa.types.is_integer(field.type):
            values = column.to_numpy()
        else:
            continue
        # The prepared file is mapped read-only: writing to a view of it would end the process.
        tensors[field.name] = torch.from_numpy(np.array(values))
    return tensors
