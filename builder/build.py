"""Building a dataset folder from a capture store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from builder.new_folder import finish_folder, new_folder
from builder.plan import parse_size, plan_row_groups, plan_shards
from builder.shard_writer import open_shard
from builder.store_rows import StoreRows, rows_of_chunks
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    DEFAULT_CONFIG,
    FileEntry,
    Manifest,
    shard_path,
)
from llava_amber_activations.layers import LayerWindow, mlp_out_name, split_name, x_name
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.schema import (
    ID,
    IMAGE,
    LEADING,
    POSITION,
    SAMPLE,
    TOKEN_ID,
    all_layers_schema,
    dataset_dtype,
    default_schema,
    targets_to_arrow,
    vectors_to_arrow,
)
from llava_amber_activations.store import (
    Chunk,
    SampleRecord,
    chunk_path,
    read_recipe,
    read_samples,
    recipe_chunks,
    vector_names,
)

DEFAULT_SHARD_SIZE = "500MB"
_BUILT_CONFIGS = (DEFAULT_CONFIG, ALL_LAYERS)


@dataclass(frozen=True)
class _Contents:
    """What every shard of a build is made from."""

    store: Path
    dtype: str
    n_layers: int
    hidden_size: int
    chunk_rows: tuple[int, ...]
    ids: tuple[int, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class _ShardTask:
    """One shard to write: a layer's, or one of all layers where `layer` is None."""

    path: str
    layer: int | None
    targets: tuple[int, ...]
    groups: tuple[range, ...]


def build(
    store: Path,
    dataset: Path,
    *,
    n_targets: int | None = None,
    configs: Sequence[str] = _BUILT_CONFIGS,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    num_proc: int = 1,
) -> Manifest:
    """Build a dataset folder from a finished capture store.

    The folder is made beside `dataset` and renamed to it when it is whole.

    Args:
        n_targets: targets of a layer in the default config; the capture's own number if None.
        configs: `default` (which brings `L0` … with it), `all_layers` or both.
        max_shard_size: most bytes of a Parquet file before compression, such as `500MB`.
        num_proc: processes that write shards.

    Raises:
        ActivationsError: the store is unfinished or damaged, or `dataset` holds something.
    """
    unknown = set(configs) - set(_BUILT_CONFIGS)
    if unknown or not configs:
        raise ActivationsError(
            f"unknown config {', '.join(sorted(unknown)) or 'list (empty)'}: "
            f"choose from {', '.join(_BUILT_CONFIGS)}"
        )
    recipe = read_recipe(store)
    records = read_samples(store)
    window = LayerWindow(recipe.n_layers, n_targets or recipe.n_targets)
    contents = _contents(store, recipe, records)
    shard_bytes = parse_size(max_shard_size)
    rows = [record.n_rows for record in records]
    if not sum(rows):
        raise ActivationsError(f"{store} holds no rows: every sample was skipped")
    tasks: list[_ShardTask] = []
    if DEFAULT_CONFIG in configs:
        for layer in window.sources:
            tasks += _plan(contents, rows, layer, tuple(window.targets(layer)), shard_bytes)
    if ALL_LAYERS in configs:
        tasks += _plan(contents, rows, None, (), shard_bytes)
    with new_folder(dataset) as folder:
        files = dict(_write_shards(folder, contents, tasks, num_proc))
        manifest = Manifest(
            recipe=recipe,
            dtype=contents.dtype,
            n_targets=window.n_targets,
            n_rows=sum(rows),
            files=files,
        )
        finish_folder(folder, manifest)
    return manifest


def _contents(store: Path, recipe: Recipe, records: list[SampleRecord]) -> _Contents:
    chunks = recipe_chunks(recipe)
    chunk_rows = rows_of_chunks(records, chunks)
    for number, rows in enumerate(chunk_rows):
        path = chunk_path(store, number)
        if Chunk(path).n_rows != rows:
            raise ActivationsError(f"{path} does not have the {rows} rows that samples.jsonl gives it")
    return _Contents(
        store=store,
        dtype=dataset_dtype(recipe.store_dtype),
        n_layers=recipe.n_layers,
        hidden_size=recipe.hidden_size,
        chunk_rows=chunk_rows,
        ids=tuple(record.id for record in records),
        images=tuple(record.image for record in records),
    )


def _plan(
    contents: _Contents,
    rows_of_samples: Sequence[int],
    layer: int | None,
    targets: tuple[int, ...],
    shard_bytes: int,
) -> list[_ShardTask]:
    vectors = 2 * contents.n_layers if layer is None else 1 + len(targets)
    row_bytes = vectors * contents.hidden_size * np.dtype(contents.dtype).itemsize
    shards = plan_shards(plan_row_groups(rows_of_samples, row_bytes), row_bytes, shard_bytes)
    config = ALL_LAYERS if layer is None else DEFAULT_CONFIG
    split = ALL_LAYERS_SPLIT if layer is None else split_name(layer)
    return [
        _ShardTask(shard_path(config, split, number, len(shards)), layer, targets, tuple(groups))
        for number, groups in enumerate(shards)
    ]


def _write_shards(
    folder: Path, contents: _Contents, tasks: list[_ShardTask], num_proc: int
) -> Iterator[tuple[str, FileEntry]]:
    with tqdm(total=len(tasks), unit=" shards", desc="build") as progress:
        if num_proc == 1:
            for task in tasks:
                yield task.path, _write_shard(folder, contents, task)
                progress.update()
            return
        # Not forked: torch and Arrow have threads by now, and their locks would be copied held.
        with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn")) as pool:
            n = len(tasks)
            entries = pool.map(_write_shard, [folder] * n, [contents] * n, tasks)
            for task, entry in zip(tasks, entries, strict=True):
                yield task.path, entry
                progress.update()


def _write_shard(folder: Path, contents: _Contents, task: _ShardTask) -> FileEntry:
    """Write one shard, a row group at a time."""
    reader = StoreRows(contents.store, contents.chunk_rows, contents.dtype)
    shape = (contents.hidden_size, contents.dtype, contents.n_layers)
    if task.layer is None:
        names = vector_names(contents.n_layers)
        schema = all_layers_schema(names, *shape)

        def make_vectors(rows: range) -> list[pa.Array]:
            return [vectors_to_arrow(reader.vectors(name, rows)) for name in names]
    else:
        x, outputs = x_name(task.layer), [mlp_out_name(target) for target in task.targets]
        schema = default_schema(*shape)

        def make_vectors(rows: range) -> list[pa.Array]:
            targets = np.stack([reader.vectors(name, rows) for name in outputs], axis=1)
            return [vectors_to_arrow(reader.vectors(x, rows)), targets_to_arrow(targets)]

    with open_shard(folder / task.path, schema) as shard:
        for rows in task.groups:
            shard.write_group([*_leading(reader, contents, rows), *make_vectors(rows)])
    return shard.entry


def _leading(reader: StoreRows, contents: _Contents, rows: range) -> list[pa.Array]:
    sample = reader.integers(SAMPLE, rows)
    columns = {
        SAMPLE: pa.array(sample),
        ID: pa.array([contents.ids[number] for number in sample], pa.int32()),
        IMAGE: pa.array([contents.images[number] for number in sample], pa.string()),
        POSITION: pa.array(reader.integers(POSITION, rows)),
        TOKEN_ID: pa.array(reader.integers(TOKEN_ID, rows)),
    }
    return [columns[name] for name in LEADING]
