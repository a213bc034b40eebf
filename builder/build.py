"""Building a dataset folder from a capture store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.new_folder import check_free, finish_folder, new_folder
from builder.plan import parse_size
from builder.shards import (
    ShardTask,
    plan_all_layers,
    plan_features,
    plan_layer,
    plan_moments,
    write_shards,
)
from builder.store_features import features_contents
from builder.store_rows import StoreRows
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.folder import ALL_LAYERS, DEFAULT_CONFIG, Manifest
from llava_amber_activations.layers import LayerWindow
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.schema import dataset_dtype
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
BUILT_CONFIGS = (DEFAULT_CONFIG, ALL_LAYERS)


@dataclass(frozen=True)
class StoreContents:
    """A finished capture store, as `builder.shards` wants it.

    Attributes:
        chunk_rows: rows of each chunk.
        ids, images: of each sample.
    """

    store: Path
    dtype: str
    n_layers: int
    width: int
    chunk_rows: tuple[int, ...]
    ids: tuple[int, ...]
    images: tuple[str, ...]

    def reader(self, layer: int | None) -> StoreRows:
        """Open the store's rows; they serve every layer."""
        return StoreRows(self.store, self.chunk_rows, self.dtype, self.ids, self.images)


def build(
    store: Path,
    dataset: Path,
    *,
    n_targets: int | None = None,
    configs: Sequence[str] = BUILT_CONFIGS,
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
    if not configs or set(configs) - set(BUILT_CONFIGS):
        raise ActivationsError(
            f"the configs to build are {' and '.join(BUILT_CONFIGS)}, not '{','.join(configs)}'"
        )
    shard_bytes = parse_size(max_shard_size)
    check_free(dataset)
    recipe = read_recipe(store)
    records = read_samples(store)
    window = LayerWindow(recipe.n_layers, recipe.n_targets if n_targets is None else n_targets)
    contents = store_contents(store, recipe, records)
    rows = [record.n_rows for record in records]
    names = vector_names(recipe.n_layers)
    tasks: list[ShardTask] = []
    if DEFAULT_CONFIG in configs:
        for layer in window.sources:
            tasks += plan_layer(contents, rows, layer, window.targets(layer), shard_bytes)
    if ALL_LAYERS in configs:
        tasks += plan_all_layers(contents, rows, names, shard_bytes)
    else:
        tasks += plan_moments(contents, rows, names, shard_bytes)
    features = features_contents(store, recipe, contents)
    feature_tasks: list[ShardTask] = []
    if features is not None:
        for layer in features.layers:
            feature_tasks += plan_features(features, [1] * features.n_samples, layer, shard_bytes)
    skipped = sum(record.error is not None for record in records)
    with new_folder(dataset) as folder:
        files, moments = write_shards(folder, contents, tasks, num_proc, "build")
        if features is not None:
            features_files, _ = write_shards(folder, features, feature_tasks, num_proc, "features")
            files |= features_files
        manifest = Manifest(
            recipe=recipe,
            dtype=contents.dtype,
            n_targets=window.n_targets,
            n_rows=sum(rows),
            files=files,
            warnings=(f"{skipped} samples have no rows: their pictures could not be read.",)
            if skipped
            else (),
        )
        return finish_folder(folder, manifest, moments)


def store_contents(store: Path, recipe: Recipe, records: Sequence[SampleRecord]) -> StoreContents:
    """Open every chunk of a finished store and check that its rows are those of `samples.jsonl`.

    Raises:
        ActivationsError: a chunk is missing or damaged, does not have those rows, or there are
            no rows at all.
    """
    if len(records) != recipe.n_samples:
        raise ActivationsError(
            f"{store}/samples.jsonl has {len(records)} samples, and its recipe {recipe.n_samples}: "
            "delete it, and run the same capture command again to make it anew"
        )
    chunk_rows = []
    for number, samples in enumerate(recipe_chunks(recipe)):
        chunk = Chunk(chunk_path(store, number))
        if chunk.records != [records[sample] for sample in samples]:
            raise ActivationsError(f"{chunk.path} does not hold the samples of samples.jsonl")
        chunk_rows.append(chunk.n_rows)
    if not sum(chunk_rows):
        raise ActivationsError(f"{store} holds no rows: every sample was skipped")
    return StoreContents(
        store=store,
        dtype=dataset_dtype(recipe.store_dtype),
        n_layers=recipe.n_layers,
        width=recipe.hidden_size,
        chunk_rows=tuple(chunk_rows),
        ids=tuple(record.id for record in records),
        images=tuple(record.image for record in records),
    )
