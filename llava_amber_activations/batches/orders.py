"""The rows of a layer in an order that a seed decides, dealt out to ranks and workers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.streams.derived_streams import layer_of_stream
from llava_amber_activations.streams.layer_stream import LayerStream
from llava_amber_activations.streams.parts import Part, check_skip
from llava_amber_activations.vectors.gather import BatchGather
from llava_amber_activations.vectors.held_rows import HeldRows, RowNumbers, rows_of_table

if TYPE_CHECKING:
    import datasets

# Some rows, and which of them come next.
Block = tuple[HeldRows, RowNumbers]

# Rows that are mixed with one another when a stream is shuffled: 70 to 600 MB of them, by the
# number of targets. Two batches at least, or a batch would be a run of row groups.
_WINDOW_ROWS = 4096
# The first rows come the sooner the fewer they are mixed with.
_FIRST_WINDOW_ROWS = 64


class Order(Protocol):
    """Rows in an order that a seed decides; `in_memory` where nothing decodes them meanwhile."""

    in_memory: bool

    def blocks(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[Block]:
        """Yield a part's rows, some at a time, from its row `skip` on.

        Raises:
            ActivationsError: it has fewer rows than that.
        """

    def identity(self) -> dict[str, Any]:
        """Say which rows these are: what a saved state must have in common with them."""

    @property
    def n_rows(self) -> int | None:
        """Rows of all parts; None where that is not known before they are read."""


def order_of(dataset: Any, batch_size: int, *, shuffle: bool, drop_last: bool) -> Order:
    """Return the order of the rows of what a user has opened.

    Raises:
        ActivationsError: it is not one split.
    """
    options = (batch_size, shuffle, drop_last)
    if isinstance(dataset, LayerStream):
        return _LayerOrder(dataset, *options)
    # Importing it takes as long as half of torch. Whoever has a dataset has imported it.
    library: Any = sys.modules.get("datasets")
    if library is not None and isinstance(dataset, library.Dataset):
        return _PreparedOrder(dataset, *options)
    if library is None or not isinstance(dataset, library.IterableDataset):
        raise ActivationsError(
            f"activation_batches takes one split, not a {type(dataset).__name__}: choose a layer, "
            'as in dataset["L5"]'
        )
    stream = layer_of_stream(dataset)
    if stream is not None:
        return _LayerOrder(stream, *options)
    return _StreamOrder(dataset, *options)


class _PreparedOrder:
    """A prepared dataset: batches are dealt out in turn, to ranks and then to their workers."""

    in_memory = True

    def __init__(
        self, dataset: datasets.Dataset, batch_size: int, shuffle: bool, drop_last: bool
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._found: Block | None = None
        self._digest: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Found in the process that reads: addresses are nothing to another one.
        return {**self.__dict__, "_found": None}

    @property
    def n_rows(self) -> int:
        return len(self._dataset)

    def identity(self) -> dict[str, Any]:
        if self._digest is None:
            self._digest = _digest_of_rows(*self._rows())
        return {"dataset": self._digest}

    def blocks(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[Block]:
        held, rows = self._rows()
        size = self._batch_size
        n_rows = len(rows)
        if self._shuffle:
            rows = rows[np.random.default_rng(seed).permutation(n_rows)]
        starts = range(
            size * (part.rank + part.world_size * part.worker), n_rows, size * part.n_parts
        )
        check_skip(skip, sum(min(size, n_rows - start) for start in starts))
        into = skip % size
        for start in starts[skip // size :]:
            yield held, rows[start + into : start + size]
            into = 0

    def _rows(self) -> Block:
        if self._found is None:
            table, rows = _table_of(self._dataset)
            self._found = rows_of_table(table), rows
        return self._found


class _LayerOrder:
    """A layer that this project opened: read from its shards, row group by row group."""

    in_memory = False

    def __init__(
        self, stream: LayerStream, batch_size: int, shuffle: bool, drop_last: bool
    ) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._first_rows = max(_FIRST_WINDOW_ROWS, batch_size)
        self._window_rows = max(_WINDOW_ROWS, 2 * batch_size)
        self._shuffle = shuffle

    @property
    def n_rows(self) -> int | None:
        return self._stream.n_rows

    def identity(self) -> dict[str, Any]:
        return self._stream.identity()

    def blocks(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[Block]:
        size, drop_last = self._batch_size, self._drop_last
        if not self._shuffle:
            return self._stream.blocks(part, skip, batch_size=size, drop_last=drop_last)
        windows = (self._first_rows, self._window_rows)
        return self._stream.mixed_blocks(
            part, skip, seed, *windows, batch_size=size, drop_last=drop_last
        )


class _StreamOrder:
    """Any other stream of `datasets`, in the order that it has or shuffles itself into.

    Where its rows begin is not known from outside, so going on after some reads those again.
    """

    in_memory = False
    n_rows = None

    def __init__(
        self, dataset: datasets.IterableDataset, batch_size: int, shuffle: bool, drop_last: bool
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last

    def identity(self) -> dict[str, Any]:
        info = self._dataset.info
        name = (info.builder_name, info.dataset_name, info.config_name, str(self._dataset.split))
        about = repr((name, self._dataset.features, self._dataset.num_shards))
        return {"dataset": hashlib.sha256(about.encode()).hexdigest()[:16]}

    def blocks(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[Block]:
        left = skip
        dataset, first, step = self._share(part)
        if dataset is None:
            check_skip(skip, 0)
            return
        if self._shuffle:
            buffer_size = max(_WINDOW_ROWS, 2 * self._batch_size)
            # One seed of two: datasets takes a single number.
            mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            dataset = dataset.shuffle(seed=mixed, buffer_size=buffer_size)
        for number, table in enumerate(dataset.with_format("arrow").iter(self._batch_size)):
            if number % step != first:
                continue
            if left < len(table):
                yield rows_of_table(table), np.arange(left, len(table))
            left = max(0, left - len(table))
        check_skip(skip, skip - left)

    def _share(self, part: Part) -> tuple[Any, int, int]:
        """Return the stream that a part reads, and which batches are the part's: one in `step`.

        Streams are cut between the files, or row groups, that they read. Where there are fewer of
        those than ranks, every rank reads all; and so does every worker of a rank with `drop_last`,
        as what each would have left over are more batches together.
        """
        dataset: Any = self._dataset
        first, step = 0, 1
        # What split_dataset_by_node has cut is a rank's own already.
        if part.world_size > 1 and getattr(dataset, "_distributed", None) is None:
            cut = _cut_stream(dataset, part.world_size)
            if cut.num_shards >= part.world_size:
                dataset = cut.shard(num_shards=part.world_size, index=part.rank)
            else:
                first, step = part.rank, part.world_size
        if part.n_workers > 1:
            if self._drop_last:
                return dataset, first + step * part.worker, step * part.n_workers
            dataset = _cut_stream(dataset, part.n_workers)
            n_workers = min(part.n_workers, dataset.num_shards)
            if part.worker >= n_workers:
                return None, first, step
            dataset = dataset.shard(num_shards=n_workers, index=part.worker)
        return dataset, first, step


def _cut_stream(dataset: Any, n_parts: int) -> Any:
    return dataset if dataset.num_shards >= n_parts else dataset.reshard()


def _digest_of_rows(held: HeldRows, rows: RowNumbers) -> str:
    """Name some rows by their numbers, and by the vectors of the first and the last."""
    digest = hashlib.sha256(f"{len(rows)}".encode())
    for name, column in held.integers.items():
        digest.update(f"{name} {column.dtype}".encode() + column[rows].tobytes())
    if len(rows):
        ends = BatchGather(in_parallel=False).batch([(held, rows[[0, -1]])])
        for name in held.vectors:
            vectors = ends[name].numpy()
            digest.update(f"{name} {vectors.shape} {vectors.dtype}".encode() + vectors.tobytes())
    return digest.hexdigest()[:16]


def _table_of(dataset: datasets.Dataset) -> tuple[pa.Table, RowNumbers]:
    """Return a prepared dataset's table and which of its rows it has, in order."""
    indices = dataset._indices
    if indices is None:
        return dataset.data.table, np.arange(len(dataset))
    return dataset.data.table, np.array(indices.column(0), dtype=np.int64)
