"""Batches of torch tensors out of a layer's dataset."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.gather import (
    Batch,
    BatchGather,
    RowNumbers,
    RowPlaces,
    places_in_table,
)
from llava_amber_activations.layer_stream import LayerStream, stream_of

if TYPE_CHECKING:
    import datasets

# Some rows, and which of them come next.
Block = tuple[RowPlaces, RowNumbers]

# Rows that are mixed with one another when a stream is shuffled: 70 to 600 MB of them, by the
# number of targets. Two batches at least, or a batch would be a run of row groups.
_WINDOW_ROWS = 4096
# The first rows come the sooner the fewer they are mixed with.
_FIRST_WINDOW_ROWS = 64


def activation_batches(
    dataset: LayerStream | datasets.Dataset | datasets.IterableDataset,
    batch_size: int = 4096,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> ActivationBatches:
    """Return the batches of a layer: of what `open_layer` or `load_activations` returned.

    What `load_dataset` returned does as well.

    Vectors go from Arrow's buffers into tensors of their own dtype (float16 stays float16), never
    through Python lists. The tensors are the caller's own to change; those of one batch share
    memory, so that one which is kept alone is better cloned.

    Args:
        dataset: a layer, or one split, prepared or streaming.
        batch_size: rows of a batch, B.
        shuffle: visit a prepared dataset's rows in random order; a stream's row groups in random
            order, and its rows mixed over 4096 of them (two batches where those are more), over
            fewer at its beginning.
        seed: of the order; `set_epoch` gives another one for every epoch.
        drop_last: leave out a last batch of fewer rows.

    Returns:
        An iterable of `{'x': [B, H], 'targets': [B, n, H], 'sample': [B], …}`: every column but the
        strings; integers are int32. For `torch.utils.data.DataLoader`, pass `batch_size=None`.

    Raises:
        ActivationsError: `dataset` is not one split.
    """
    order = _order_of(dataset, batch_size, shuffle)
    return ActivationBatches(order, batch_size, seed=seed, drop_last=drop_last)


def _order_of(dataset: Any, batch_size: int, shuffle: bool) -> _Order:
    if isinstance(dataset, LayerStream):
        return _LayerOrder(dataset, batch_size, shuffle)
    # Importing it takes as long as half of torch. Whoever has a dataset has imported it.
    library: Any = sys.modules.get("datasets")
    if library is not None and isinstance(dataset, library.Dataset):
        return _PreparedOrder(dataset, batch_size, shuffle)
    if library is None or not isinstance(dataset, library.IterableDataset):
        raise ActivationsError(
            f"activation_batches takes one split, not a {type(dataset).__name__}: choose a layer, "
            'as in dataset["L5"]'
        )
    stream = stream_of(dataset)
    if stream is not None:
        return _LayerOrder(stream, batch_size, shuffle)
    return _StreamOrder(dataset, batch_size, shuffle)


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
        self._gather = BatchGather(in_parallel=True)

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
        # What a stream has read is not kept till the next epoch.
        gather = self._gather if self._order.in_memory else BatchGather(in_parallel=False)
        for batch in _batches(blocks, self._batch_size, gather):
            n_rows = len(next(iter(batch.values())))
            if n_rows < self._batch_size and self._drop_last:
                return
            self._rows_done += n_rows
            yield batch


class _Order(Protocol):
    """Rows in an order that a seed decides; `in_memory` where nothing decodes them meanwhile."""

    in_memory: bool

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Block]:
        """Yield a worker's rows, some at a time, from its row `skip` on."""


class _PreparedOrder:
    """A prepared dataset: batches are dealt out to the workers in turn."""

    in_memory = True

    def __init__(self, dataset: datasets.Dataset, batch_size: int, shuffle: bool) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._found: tuple[RowPlaces, RowNumbers] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Found in the process that reads: addresses are nothing to another one.
        return {**self.__dict__, "_found": None}

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Block]:
        if self._found is None:
            table, rows = _table_of(self._dataset)
            self._found = places_in_table(table), rows
        places, rows = self._found
        size = self._batch_size
        n_rows = len(rows)
        if self._shuffle:
            rows = rows[np.random.default_rng(seed).permutation(n_rows)]
        first = worker + n_workers * (skip // size)
        into = skip % size
        for start in range(first * size, n_rows, n_workers * size):
            yield places, rows[start + into : start + size]
            into = 0


class _LayerOrder:
    """A stream that `load_activations` opened: read from its shards, row group by row group."""

    in_memory = False

    def __init__(self, stream: LayerStream, batch_size: int, shuffle: bool) -> None:
        self._stream = stream
        self._first_rows = max(_FIRST_WINDOW_ROWS, batch_size)
        self._window_rows = max(_WINDOW_ROWS, 2 * batch_size)
        self._shuffle = shuffle

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Block]:
        if self._shuffle:
            return self._stream.mixed_blocks(
                *(worker, n_workers, skip, seed, self._first_rows, self._window_rows)
            )
        return self._stream.blocks(worker, n_workers, skip)


class _StreamOrder:
    """Any other stream of `datasets`, in the order that it has or shuffles itself into.

    Where its rows begin is not known from outside, so going on after some reads those again.
    """

    in_memory = False

    def __init__(self, dataset: datasets.IterableDataset, batch_size: int, shuffle: bool) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle

    def blocks(
        self, seed: tuple[int, int], worker: int, n_workers: int, skip: int
    ) -> Iterator[Block]:
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
                yield places_in_table(table), np.arange(skip, len(table))
            skip = max(0, skip - len(table))


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _table_of(dataset: datasets.Dataset) -> tuple[pa.Table, RowNumbers]:
    """Return a prepared dataset's table and which of its rows it has, in order."""
    indices = dataset._indices
    if indices is None:
        return dataset.data.table, np.arange(len(dataset))
    return dataset.data.table, np.array(indices.column(0), dtype=np.int64)


def _batches(blocks: Iterator[Block], batch_size: int, gather: BatchGather) -> Iterator[Batch]:
    """Cut and join blocks into batches; the last one may be smaller."""
    held: list[Block] = []
    n_held = 0
    for places, rows in blocks:
        start = 0
        while n_held + len(rows) - start >= batch_size:
            stop = start + batch_size - n_held
            yield gather.batch([*held, (places, rows[start:stop])])
            held, n_held, start = [], 0, stop
        if start < len(rows):
            held.append((places, rows[start:]))
            n_held += len(rows) - start
    if held:
        yield gather.batch(held)
