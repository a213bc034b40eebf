"""The shards of a dataset folder, written one by one or by several at once."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.contents.contents import Contents
from builder.shards.finished import Done, FinishedShards
from builder.shards.row_sizes import Int64s
from builder.shards.tasks import ShardTask, plan_outliers, schema_of
from builder.shards.vector_moments import VectorMoments, merge_all, vector_moments
from builder.shards.writer import open_shard
from llava_amber_activations.console.interruption import interrupts_left_to_this_process
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    targets_to_arrow,
    vectors_to_arrow,
)
from llava_amber_activations.formats.columns import KIND, SAMPLE, row_columns
from llava_amber_activations.formats.dataset_folder import (
    CLT_FEATURES,
    DEFAULT_CONFIG,
    FileEntry,
)
from llava_amber_activations.formats.statistics import COUNTED_KINDS

# Each holds a row group or two, of at most 64 MiB. Two write as fast as two processes, which have
# torch to import first.
_MOST_THREADS = 4


def write_shards(
    folder: Path,
    contents: Contents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    label: str,
    finished: FinishedShards,
) -> tuple[dict[str, FileEntry], dict[str, VectorMoments]]:
    """Write shards, in as many threads as help, or in `num_proc` processes where they are more.

    Where the outliers of a vector were not all told apart at once, its rows are read once more.

    Args:
        finished: shards that are not made again; what is made now is added to them.

    Returns:
        The manifest's entry of each file, by its path; and the moments of each vector of the
        tasks of all layers, merged in the order of the tasks, so that they do not depend on
        `num_proc`.
    """
    with Progress(label, total=len(tasks), unit="shard") as progress:
        joined = Joined()
        every = _done(folder, contents, tasks, num_proc, finished)
        for task, done in zip(tasks, every, strict=True):
            progress.update()
            joined.add(task, done)
    again = plan_outliers(tasks, joined.moments)
    if again:
        joined.moments |= write_shards(folder, contents, again, num_proc, "outliers", finished)[1]
    return joined.entries, joined.moments


def finish_shards(
    folder: Path,
    contents: Contents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    label: str,
    finished: FinishedShards,
    *,
    shown: bool,
) -> None:
    """Write shards as `write_shards` does, and leave what they gave to whoever joins it.

    Args:
        shown: whether progress is.
    """
    with Progress(label, total=len(tasks), unit="shard", shown=shown) as progress:
        for _ in _done(folder, contents, tasks, num_proc, finished):
            progress.update()


class Joined:
    """What shards gave, taken in one by one, so that no more than the sum is in memory.

    Attributes:
        entries: the manifest's entry of each file, by its path.
        moments: of each vector, merged in the order in which the shards are taken in.
    """

    def __init__(self) -> None:
        self.entries: dict[str, FileEntry] = {}
        self.moments: dict[str, VectorMoments] = {}

    def add(self, task: ShardTask, done: Done) -> None:
        """Take in the next shard."""
        entry, moments = done
        if task.path is not None and entry is not None:
            self.entries[task.path] = entry
        self.moments = merge_all([self.moments, moments])


_Given = tuple[Path, Contents, ShardTask, bytes, FinishedShards]


def _done(
    folder: Path,
    contents: Contents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    finished: FinishedShards,
) -> Iterator[Done]:
    """Yield what each shard gave, in the order of the tasks."""
    # Made here: their features need `datasets`, which every process would have to import. As bytes:
    # pickled, a fixed-size list forgets that its elements are never null.
    given = [
        (folder, contents, task, schema_of(contents, task).serialize().to_pybytes(), finished)
        for task in tasks
    ]
    if num_proc <= _MOST_THREADS:
        n = n_threads(num_proc)
        with ThreadPoolExecutor(n) as threads:
            yield from _in_order((partial(threads.submit, _do, *each) for each in given), n)
        return
    # Not forked: torch and Arrow have threads by now, and their locks would be copied held.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(num_proc, mp_context=spawn, initializer=_end_with_parent) as pool:

        def submit(each: _Given) -> Future[Done]:
            # Any of them may start a process.
            with interrupts_left_to_this_process():
                return pool.submit(_do, *each)

        yield from _in_order((partial(submit, each) for each in given), num_proc)


def _in_order(submits: Iterable[Callable[[], Future[Done]]], n_at_once: int) -> Iterator[Done]:
    """Submit shards and yield what they gave, in order.

    What is done before its turn waits: no more than two for each that writes.
    """
    waiting: deque[Future[Done]] = deque()
    try:
        for submit in submits:
            waiting.append(submit())
            if len(waiting) >= 2 * n_at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for each in waiting:
            each.cancel()


def n_threads(num_proc: int) -> int:
    """Return how many threads write shards where `num_proc` at once were asked for, or more."""
    # What takes the time (Arrow, numpy, SHA-256) leaves the interpreter to other threads.
    return max(num_proc, min(_MOST_THREADS, os.cpu_count() or 1))


def _end_with_parent() -> None:
    """End this process when the one that started it is killed, or it would wait for it for ever."""
    # Where it could not be blocked.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def _do(
    folder: Path, contents: Contents, task: ShardTask, schema: bytes, finished: FinishedShards
) -> Done:
    """Write one shard, whose rows can all be read, unless it is finished."""
    before = finished.find(folder, task, schema)
    if before is not None:
        return before
    writing = write_shard(folder, contents, task, pa.ipc.read_schema(pa.py_buffer(schema)))
    while True:
        try:
            next(writing)
        except StopIteration as end:
            done: Done = end.value
            finished.add(task, schema, done)
            return done


def write_shard(
    folder: Path, contents: Contents, task: ShardTask, schema: pa.Schema
) -> Generator[range, None, Done]:
    """Write one shard, a row group at a time, or only take its moments.

    Yields:
        The rows of each row group, before they are read.
    """
    reader = contents.reader(task.layer)
    moments: dict[str, VectorMoments] = {}

    def vectors_of(rows: range, leading: Mapping[str, pa.Array]) -> list[Vectors]:
        nonlocal moments
        vectors = [reader.vectors(name, rows) for name in task.names]
        if task.layer is None:
            kinds = _counted_kinds(leading[KIND])
            of_group = {
                name: vector_moments(each, kinds, moments.get(name), task.outliers_from.get(name))
                for name, each in zip(task.names, vectors, strict=True)
            }
            moments = merge_all([moments, of_group])
        return vectors

    if task.path is None:
        for rows in task.groups:
            yield rows
            vectors_of(rows, reader.leading(rows))
        return None, moments
    of_rows = (SAMPLE,) if task.config == CLT_FEATURES else row_columns(contents.extra_columns)
    with open_shard(folder / task.path, schema) as shard:
        for rows in task.groups:
            yield rows
            leading = reader.leading(rows)
            columns = _vector_columns(vectors_of(rows, leading), task.config)
            shard.write_group([*(leading[name] for name in of_rows), *columns])
    return shard.entry, moments


def _counted_kinds(kinds: pa.Array) -> Int64s:
    """Return the place of each kind in `COUNTED_KINDS`: [rows]."""
    found = pc.index_in(kinds, value_set=pa.array(COUNTED_KINDS, pa.string()))
    places: Int64s = found.fill_null(len(COUNTED_KINDS) - 1).to_numpy().astype(np.int64)
    return places


def _vector_columns(vectors: Sequence[Vectors], config: str) -> list[pa.Array]:
    if config != DEFAULT_CONFIG:
        return [vectors_to_arrow(each) for each in vectors]
    x, *targets = vectors
    return [vectors_to_arrow(x), targets_to_arrow(np.stack(targets, axis=1))]
