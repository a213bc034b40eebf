"""The rows of a layer in an order that a seed decides, dealt out to ranks and workers."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.streams.derived_streams import layer_of_stream
from llava_amber_activations.streams.parts import Part, check_skip
from llava_amber_activations.streams.row_choice import RowChoice, choose_rows, chosen_in, no_row
from llava_amber_activations.streams.shard_stream import ShardStream
from llava_amber_activations.vectors.gather import BatchGather
from llava_amber_activations.vectors.held_rows import HeldRows, RowNumbers, rows_of_table

if TYPE_CHECKING:
    import datasets

# Some rows, and which of them come next.
Block = tuple[HeldRows, RowNumbers]

# Rows of a shuffled stream of `datasets` that are mixed with one another; two batches at least.
_WINDOW_ROWS = 4096


class Order(Protocol):
    """Rows in an order that a seed decides; `in_memory` where nothing decodes them meanwhile."""

    in_memory: bool

    def batches(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[list[Block]]:
        """Yield a part's batches, from its row `skip` on, each as runs of rows.

        Raises:
            ActivationsError: it has fewer rows than that.
        """

    def identity(self) -> dict[str, Any]:
        """Say which rows these are: what a saved state must have in common with them."""

    @property
    def n_rows(self) -> int | None:
        """Rows of all parts; None where that is not known before they are read."""

    @property
    def n_left_out(self) -> int | None:
        """Rows that were not chosen; None where that is not known before they are read."""


def order_of(
    dataset: Any, batch_size: int, choice: RowChoice | None, *, shuffle: bool, drop_last: bool
) -> Order:
    """Return the order of the rows of what a user has opened.

    Raises:
        ActivationsError: it is not one split, or no row of it is wanted.
    """
    options = _Options(batch_size, shuffle, drop_last)
    if isinstance(dataset, ShardStream):
        return _ShardOrder(dataset, choice, options)
    # Importing it takes as long as half of torch. Whoever has a dataset has imported it.
    library: Any = sys.modules.get("datasets")
    if library is not None and isinstance(dataset, library.Dataset):
        return _PreparedOrder(dataset, choice, options)
    if library is None or not isinstance(dataset, library.IterableDataset):
        raise ActivationsError(
            f"activation_batches takes one split, not a {type(dataset).__name__}: choose a layer, "
            'as in dataset["L5"]'
        )
    stream = layer_of_stream(dataset)
    if stream is not None:
        return _ShardOrder(stream, choice, options)
    return _StreamOrder(dataset, choice, options)


@dataclass(frozen=True)
class _Options:
    batch_size: int
    shuffle: bool
    drop_last: bool


class _PreparedOrder:
    """A prepared dataset: a rank's batches are dealt out in turn to its workers."""

    in_memory = True

    def __init__(
        self, dataset: datasets.Dataset, choice: RowChoice | None, options: _Options
    ) -> None:
        self._dataset = dataset
        self._choice = choice
        self._options = options
        self._found: Block | None = None
        self._digest: str | None = None
        if choice is not None:
            self._rows()

    def __getstate__(self) -> dict[str, Any]:
        # Found in the process that reads: addresses are nothing to another one.
        return {**self.__dict__, "_found": None}

    @property
    def n_rows(self) -> int:
        return len(self._dataset) if self._choice is None else len(self._rows()[1])

    @property
    def n_left_out(self) -> int:
        return len(self._dataset) - self.n_rows

    def identity(self) -> dict[str, Any]:
        if self._digest is None:
            self._digest = _digest_of_rows(*self._rows())
        return {"dataset": self._digest}

    def batches(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[list[Block]]:
        held, rows = self._rows()
        n_rows = len(rows)
        if self._options.shuffle:
            rows = rows[np.random.default_rng(seed).permutation(n_rows)]
        size, drop_last = self._options.batch_size, self._options.drop_last
        mine = part.batches(n_rows, size, drop_last=drop_last, in_turn=True)
        check_skip(skip, sum(map(len, mine)))
        for batch in mine:
            if skip < len(batch):
                yield [(held, rows[batch.start + skip : batch.stop])]
            skip = max(0, skip - len(batch))

    def _rows(self) -> Block:
        if self._found is None:
            table, rows = _table_of(self._dataset)
            if self._choice is not None:
                n_rows = len(rows)
                rows = rows[chosen_in(table, self._choice)[rows]]
                if not len(rows):
                    raise no_row(self._choice, n_rows)
            self._found = rows_of_table(table), rows
        return self._found


class _ShardOrder:
    """What this project opened: read from its shards, row group by row group."""

    in_memory = False

    def __init__(self, stream: ShardStream, choice: RowChoice | None, options: _Options) -> None:
        self._options = options
        self._stream, self._n_left_out = stream, 0
        if choice is not None:
            shards = stream.open_shards()
            chosen, n_rows = choose_rows(shards, stream.pieces(shards), choice)
            self._stream = dataclasses.replace(stream, choice=choice, chosen=chosen)
            self._n_left_out = n_rows - sum(len(each.rows) for each in chosen)

    @property
    def n_rows(self) -> int | None:
        return self._stream.n_rows

    @property
    def n_left_out(self) -> int:
        return self._n_left_out

    def identity(self) -> dict[str, Any]:
        return self._stream.identity()

    def batches(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[list[Block]]:
        size, drop_last = self._options.batch_size, self._options.drop_last
        sizes: Iterable[int] = repeat(size)
        if part.n_parts > 1:
            n_rows = self._stream.counted_rows()
            sizes = map(len, part.batches(n_rows, size, drop_last=drop_last))
        if self._options.shuffle:
            blocks = self._stream.mixed_blocks(
                part, skip, seed, batch_size=size, drop_last=drop_last
            )
        else:
            blocks = self._stream.blocks(part, skip, batch_size=size, drop_last=drop_last)
        return joined(blocks, sizes_from(sizes, skip), drop_last=drop_last)


class _StreamOrder:
    """Any other stream of `datasets`, in the order that it has or shuffles itself into.

    Where its rows begin is not known from outside, so going on after some reads those again.
    """

    in_memory = False
    n_rows = None
    n_left_out = None

    def __init__(
        self, dataset: datasets.IterableDataset, choice: RowChoice | None, options: _Options
    ) -> None:
        self._dataset = dataset
        self._choice = choice
        self._options = options

    def identity(self) -> dict[str, Any]:
        info = self._dataset.info
        name = (info.builder_name, info.dataset_name, info.config_name, str(self._dataset.split))
        about = repr((name, self._dataset.features, self._dataset.num_shards))
        identity = {"dataset": hashlib.sha256(about.encode()).hexdigest()[:16]}
        return identity if self._choice is None else {**identity, "where": str(self._choice)}

    def batches(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[list[Block]]:
        sizes = sizes_from(repeat(self._options.batch_size), skip)
        return joined(self._blocks(seed, part, skip), sizes, drop_last=self._options.drop_last)

    def _blocks(self, seed: tuple[int, int], part: Part, skip: int) -> Iterator[Block]:
        left = skip
        dataset, first, step = self._share(part)
        if dataset is None:
            check_skip(skip, 0)
            return
        if self._options.shuffle:
            buffer_size = max(_WINDOW_ROWS, 2 * self._options.batch_size)
            # One seed of two: datasets takes a single number.
            mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            dataset = dataset.shuffle(seed=mixed, buffer_size=buffer_size)
        for number, table in enumerate(dataset.with_format("arrow").iter(self._options.batch_size)):
            if number % step != first:
                continue
            rows = np.arange(len(table))
            if self._choice is not None:
                rows = rows[chosen_in(table, self._choice)]
            if left < len(rows):
                yield rows_of_table(table), rows[left:]
            left = max(0, left - len(rows))
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
            if self._options.drop_last:
                return dataset, first + step * part.worker, step * part.n_workers
            dataset = _cut_stream(dataset, part.n_workers)
            n_workers = min(part.n_workers, dataset.num_shards)
            if part.worker >= n_workers:
                return None, first, step
            dataset = dataset.shard(num_shards=n_workers, index=part.worker)
        return dataset, first, step


def joined(
    blocks: Iterator[Block], sizes: Iterator[int], *, drop_last: bool
) -> Iterator[list[Block]]:
    """Cut and join blocks into batches of these sizes; a smaller last one may be dropped."""
    kept: list[Block] = []
    n_kept, size = 0, next(sizes, 0)
    for held, rows in blocks:
        start = 0
        while size and n_kept + len(rows) - start >= size:
            stop = start + size - n_kept
            yield [*kept, (held, rows[start:stop])]
            kept, n_kept, start, size = [], 0, stop, next(sizes, 0)
        if start < len(rows):
            kept.append((held, rows[start:]))
            n_kept += len(rows) - start
    if kept and not drop_last:
        yield kept


def sizes_from(sizes: Iterable[int], skip: int) -> Iterator[int]:
    """Return the sizes of the batches behind the first `skip` rows."""
    for size in sizes:
        if skip < size:
            yield size - skip
        skip = max(0, skip - size)


def _cut_stream(dataset: Any, n_parts: int) -> Any:
    return dataset if dataset.num_shards >= n_parts else dataset.reshard()


def _digest_of_rows(held: HeldRows, rows: RowNumbers) -> str:
    """Name some rows by their numbers, and by the vectors of the first and the last."""
    digest = hashlib.sha256(f"{len(rows)}".encode())
    for name, column in held.numbers.items():
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
