"""The shards of a dataset folder: planned from row counts, written one by one or by several."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa

from builder.contents.contents import Contents
from builder.shards.moments import Moments, merge_all, moments_of
from builder.shards.plan import plan_row_groups, plan_shards
from builder.shards.writer import open_shard
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    targets_to_arrow,
    vectors_to_arrow,
)
from llava_amber_activations.formats.columns import FEATURES, LEADING, SAMPLE
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
        names: vectors that it holds, in order: `x` and then the targets, or those of all layers.
        groups: rows of each row group.
    """

    path: str | None
    config: str
    layer: int | None
    names: tuple[str, ...]
    groups: tuple[range, ...]


def plan_layer(
    contents: Contents,
    rows_of_samples: Sequence[int],
    layer: int,
    targets: Sequence[int],
    shard_bytes: int,
) -> list[ShardTask]:
    """Plan the shards of a layer's split in the default config."""
    names = (x_name(layer), *map(mlp_out_name, targets))
    return _plan(contents, rows_of_samples, DEFAULT_CONFIG, layer, names, shard_bytes)


def plan_all_layers(
    contents: Contents, rows_of_samples: Sequence[int], names: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """Plan the shards of `all_layers` with the vectors `names`."""
    return _plan(contents, rows_of_samples, ALL_LAYERS, None, tuple(names), shard_bytes)


def plan_moments(
    contents: Contents, rows_of_samples: Sequence[int], names: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """Plan a pass over the vectors `names` that writes nothing, for a folder without all_layers."""
    tasks = plan_all_layers(contents, rows_of_samples, names, shard_bytes)
    return [dataclasses.replace(task, path=None) for task in tasks]


def plan_features(
    contents: Contents, rows_of_samples: Sequence[int], layer: int, shard_bytes: int
) -> list[ShardTask]:
    """Plan the shards of a layer's split in `clt_features`."""
    return _plan(contents, rows_of_samples, CLT_FEATURES, layer, (FEATURES,), shard_bytes)


def _plan(
    contents: Contents,
    rows_of_samples: Sequence[int],
    config: str,
    layer: int | None,
    names: tuple[str, ...],
    shard_bytes: int,
) -> list[ShardTask]:
    row_bytes = len(names) * contents.width * np.dtype(contents.dtype).itemsize
    shards = plan_shards(plan_row_groups(rows_of_samples, row_bytes), row_bytes, shard_bytes)
    split = ALL_LAYERS_SPLIT if layer is None else split_name(layer)
    return [
        ShardTask(
            shard_path(config, split, number, len(shards)), config, layer, names, tuple(groups)
        )
        for number, groups in enumerate(shards)
    ]


def write_shards(
    folder: Path, contents: Contents, tasks: Sequence[ShardTask], num_proc: int, label: str
) -> tuple[dict[str, FileEntry], dict[str, Moments]]:
    """Write shards, in as many threads as help, or in `num_proc` processes where they are more.

    Returns:
        The manifest's entry of each file, by its path; and the moments of each vector of the
        tasks of all layers, merged in the order of the tasks, so that they do not depend on
        `num_proc`.
    """
    entries, moments = {}, []
    with Progress(label, total=len(tasks), unit="shard") as progress:
        done = _done(folder, contents, tasks, num_proc)
        for task, (entry, shard_moments) in zip(tasks, done, strict=True):
            if task.path is not None and entry is not None:
                entries[task.path] = entry
            moments.append(shard_moments)
            progress.update()
    return entries, merge_all(moments)


_Done = tuple[FileEntry | None, dict[str, Moments]]


def _done(
    folder: Path, contents: Contents, tasks: Sequence[ShardTask], num_proc: int
) -> Iterator[_Done]:
    n = len(tasks)
    # Made here: their features need `datasets`, which every process would have to import. As bytes:
    # pickled, a fixed-size list forgets that its elements are never null.
    schemas = [_schema(contents, task).serialize().to_pybytes() for task in tasks]
    given = [folder] * n, [contents] * n, tasks, schemas
    if num_proc <= _MOST_THREADS:
        # What takes the time (Arrow, numpy, SHA-256) leaves the interpreter to other threads.
        n_threads = max(num_proc, min(_MOST_THREADS, os.cpu_count() or 1))
        with ThreadPoolExecutor(n_threads) as threads:
            yield from threads.map(_do, *given)
        return
    # Not forked: torch and Arrow have threads by now, and their locks would be copied held.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(num_proc, mp_context=spawn, initializer=_end_with_parent) as pool:
        yield from pool.map(_do, *given)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed, or it would wait for it for ever."""
    # A terminal sends Ctrl-C to every process: what it ends is up to the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def _do(folder: Path, contents: Contents, task: ShardTask, schema: bytes) -> _Done:
    """Write one shard, a row group at a time, or only take its moments."""
    reader = contents.reader(task.layer)
    moments: dict[str, Moments] = {}

    def vectors_of(rows: range) -> list[Vectors]:
        nonlocal moments
        vectors = [reader.vectors(name, rows) for name in task.names]
        if task.layer is None:
            parts = zip(task.names, map(moments_of, vectors), strict=True)
            moments = merge_all([moments, dict(parts)])
        return vectors

    if task.path is None:
        for rows in task.groups:
            vectors_of(rows)
        return None, moments
    leading_names = (SAMPLE,) if task.config == CLT_FEATURES else LEADING
    with open_shard(folder / task.path, pa.ipc.read_schema(pa.py_buffer(schema))) as shard:
        for rows in task.groups:
            leading = reader.leading(rows)
            columns = _vector_columns(vectors_of(rows), task.config)
            shard.write_group([*(leading[name] for name in leading_names), *columns])
    return shard.entry, moments


def _schema(contents: Contents, task: ShardTask) -> pa.Schema:
    shape = (contents.width, contents.dtype, contents.n_layers)
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
