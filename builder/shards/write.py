"""The shards of a dataset folder: planned from row counts, written one by one or by several."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.contents.contents import Contents, VectorForm
from builder.shards.plan import plan_row_groups, plan_shards
from builder.shards.row_sizes import Int64s
from builder.shards.vector_moments import VectorMoments, merge_all, vector_moments
from builder.shards.writer import open_shard
from llava_amber_activations.console.interruption import interrupts_left_to_this_process
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    targets_to_arrow,
    vectors_to_arrow,
)
from llava_amber_activations.formats.columns import KIND, LEADING, SAMPLE
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    CLT_FEATURES,
    DEFAULT_CONFIG,
    FileEntry,
    shard_path,
)
from llava_amber_activations.formats.layers import mlp_out_name, split_name, x_name
from llava_amber_activations.formats.schema import (
    all_layers_schema,
    clt_features_schema,
    default_schema,
    with_features,
)
from llava_amber_activations.formats.statistics import COUNTED_KINDS
from llava_amber_activations.store.features import features_name

# Each holds a row group or two, of at most 64 MiB. Two write as fast as two processes, which have
# torch to import first.
_MOST_THREADS = 4


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
        path: relative to the dataset folder; None where only the moments of `names` are wanted.
        config: `default`, `all_layers` or `clt_features`.
        layer: of the split; None in `all_layers`.
        names: vectors that it holds, in order: `x` and then the targets, those of all layers, or
            a layer's features.
        groups: rows of each row group.
        outliers_from: of each vector, the first class of sizes of its outliers, where the moments
            are taken once more.
    """

    path: str | None
    config: str
    layer: int | None
    names: tuple[str, ...]
    groups: tuple[range, ...]
    outliers_from: Mapping[str, int] = field(default_factory=dict)


def plan_layer(
    form: VectorForm,
    rows_of_samples: Sequence[int],
    layer: int,
    targets: Sequence[int],
    shard_bytes: int,
) -> list[ShardTask]:
    """Plan the shards of a layer's split in the default config."""
    names = (x_name(layer), *map(mlp_out_name, targets))
    return _plan(form, rows_of_samples, DEFAULT_CONFIG, layer, names, shard_bytes)


def plan_all_layers(
    form: VectorForm, rows_of_samples: Sequence[int], names: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """Plan the shards of `all_layers` with the vectors `names`."""
    return _plan(form, rows_of_samples, ALL_LAYERS, None, tuple(names), shard_bytes)


def plan_moments(
    form: VectorForm, rows_of_samples: Sequence[int], names: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """Plan a pass over the vectors `names` that writes nothing, for a folder without all_layers."""
    tasks = plan_all_layers(form, rows_of_samples, names, shard_bytes)
    return [dataclasses.replace(task, path=None) for task in tasks]


def plan_outliers(
    tasks: Sequence[ShardTask], moments: Mapping[str, VectorMoments]
) -> list[ShardTask]:
    """Plan a pass over the vectors whose outliers were not all told apart; it writes nothing.

    By now it is known which are outliers, so that after it none are left.

    Args:
        tasks: that gave the moments.
        moments: of all rows, merged.
    """
    first = {
        name: each.outliers_from for name, each in moments.items() if not each.are_outliers_apart
    }
    if not first:
        return []
    return [
        dataclasses.replace(task, path=None, names=tuple(first), outliers_from=first)
        for task in tasks
        if task.layer is None
    ]


def plan_features(
    form: VectorForm, rows_of_samples: Sequence[int], layer: int, shard_bytes: int
) -> list[ShardTask]:
    """Plan the shards of a layer's split in `clt_features`."""
    names = (features_name(layer),)
    return _plan(form, rows_of_samples, CLT_FEATURES, layer, names, shard_bytes)


def _plan(
    form: VectorForm,
    rows_of_samples: Sequence[int],
    config: str,
    layer: int | None,
    names: tuple[str, ...],
    shard_bytes: int,
) -> list[ShardTask]:
    row_bytes = len(names) * form.width * np.dtype(form.dtype).itemsize
    row_groups = plan_row_groups(rows_of_samples, form.width, row_bytes)
    shards = plan_shards(row_groups, row_bytes, shard_bytes)
    split = ALL_LAYERS_SPLIT if layer is None else split_name(layer)
    return [
        ShardTask(
            shard_path(config, split, number, len(shards)), config, layer, names, tuple(groups)
        )
        for number, groups in enumerate(shards)
    ]


def write_shards(
    folder: Path, contents: Contents, tasks: Sequence[ShardTask], num_proc: int, label: str
) -> tuple[dict[str, FileEntry], dict[str, VectorMoments]]:
    """Write shards, in as many threads as help, or in `num_proc` processes where they are more.

    Where the outliers of a vector were not all told apart at once, its rows are read once more.

    Returns:
        The manifest's entry of each file, by its path; and the moments of each vector of the
        tasks of all layers, merged in the order of the tasks, so that they do not depend on
        `num_proc`.
    """
    with Progress(label, total=len(tasks), unit="shard") as progress:
        entries, moments = joined(tasks, _done(folder, contents, tasks, num_proc, progress))
    again = plan_outliers(tasks, moments)
    if again:
        moments |= write_shards(folder, contents, again, num_proc, "outliers")[1]
    return entries, moments


def joined(
    tasks: Sequence[ShardTask], done: Iterable[Done]
) -> tuple[dict[str, FileEntry], dict[str, VectorMoments]]:
    """Return the entries of shards by their paths, and their moments merged in their order."""
    entries: dict[str, FileEntry] = {}
    moments: dict[str, VectorMoments] = {}
    for task, (entry, of_task) in zip(tasks, done, strict=True):
        if task.path is not None and entry is not None:
            entries[task.path] = entry
        moments = merge_all([moments, of_task])
    return entries, moments


Done = tuple[FileEntry | None, dict[str, VectorMoments]]


def _done(
    folder: Path,
    contents: Contents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    progress: Progress,
) -> Iterator[Done]:
    n = len(tasks)
    # Made here: their features need `datasets`, which every process would have to import. As bytes:
    # pickled, a fixed-size list forgets that its elements are never null.
    schemas = [schema_of(contents, task).serialize().to_pybytes() for task in tasks]
    given = [folder] * n, [contents] * n, tasks, schemas
    if num_proc <= _MOST_THREADS:
        with ThreadPoolExecutor(n_threads(num_proc)) as threads:
            yield from _shown(threads.map(_do, *given), progress)
        return
    # Not forked: torch and Arrow have threads by now, and their locks would be copied held.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(num_proc, mp_context=spawn, initializer=_end_with_parent) as pool:
        with interrupts_left_to_this_process():
            done = pool.map(_do, *given)
        yield from _shown(done, progress)


def _shown(done: Iterable[Done], progress: Progress) -> Iterator[Done]:
    for each in done:
        progress.update()
        yield each


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


def _do(folder: Path, contents: Contents, task: ShardTask, schema: bytes) -> Done:
    """Write one shard, whose rows can all be read."""
    writing = write_shard(folder, contents, task, pa.ipc.read_schema(pa.py_buffer(schema)))
    while True:
        try:
            next(writing)
        except StopIteration as end:
            done: Done = end.value
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
    leading_names = (SAMPLE,) if task.config == CLT_FEATURES else LEADING
    with open_shard(folder / task.path, schema) as shard:
        for rows in task.groups:
            yield rows
            leading = reader.leading(rows)
            columns = _vector_columns(vectors_of(rows, leading), task.config)
            shard.write_group([*(leading[name] for name in leading_names), *columns])
    return shard.entry, moments


def _counted_kinds(kinds: pa.Array) -> Int64s:
    """Return the place of each kind in `COUNTED_KINDS`: [rows]."""
    found = pc.index_in(kinds, value_set=pa.array(COUNTED_KINDS, pa.string()))
    places: Int64s = found.fill_null(len(COUNTED_KINDS) - 1).to_numpy().astype(np.int64)
    return places


def schema_of(form: VectorForm, task: ShardTask) -> pa.Schema:
    """Return the schema of a shard, as `datasets` reads it."""
    shape = (form.width, form.dtype, form.n_layers)
    if task.config == ALL_LAYERS:
        return with_features(all_layers_schema(task.names, *shape))
    if task.config == CLT_FEATURES:
        return with_features(clt_features_schema(*shape))
    return with_features(default_schema(*shape))


def _vector_columns(vectors: Sequence[Vectors], config: str) -> list[pa.Array]:
    if config != DEFAULT_CONFIG:
        return [vectors_to_arrow(each) for each in vectors]
    x, *targets = vectors
    return [vectors_to_arrow(x), targets_to_arrow(np.stack(targets, axis=1))]
