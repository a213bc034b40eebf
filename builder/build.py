"""Building a dataset folder from a capture store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.asked.new_place import check_figures, check_free, clear_leftovers
from builder.asked.store_to_build import (
    BUILT_CONFIGS,
    check_build_room,
    check_configs,
    configs_to_build,
    say_build,
)
from builder.contents.store_features import features_contents
from builder.contents.store_rows import store_contents
from builder.folder.new_folder import finish_folder
from builder.folder.unfinished import build_said, clear_others, unfinished_folder
from builder.shards.plan import parse_shard_size
from builder.shards.tasks import (
    ShardTask,
    plan_all_layers,
    plan_features,
    plan_layer,
    plan_moments,
)
from builder.shards.write import write_shards
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import remove, unfinished_path
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    DEFAULT_CONFIG,
    MANIFEST_FILE,
    BuiltFrom,
    Manifest,
)
from llava_amber_activations.formats.layers import LayerWindow
from llava_amber_activations.sources.source import open_source
from llava_amber_activations.store.layout import read_recipe, vector_names
from llava_amber_activations.store.norms_file import read_store_norms
from llava_amber_activations.store.samples import read_samples

DEFAULT_SHARD_SIZE = "500MB"


def build(
    store: Path,
    dataset: Path,
    *,
    n_targets: int | None = None,
    configs: Sequence[str] | None = None,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    num_proc: int = 1,
    force: bool = False,
) -> Manifest:
    """Build a dataset folder from a finished capture store.

    The folder is made beside `dataset` and renamed to it when it is whole. Shards that a run of the
    same build had finished are kept, if their checksums are right, and not made again. Where
    `dataset` is what the same store and options give, nothing is done. How much will be written is
    said before.

    Args:
        n_targets: targets of a layer in the default config; the capture's own number if None.
        configs: `default` (which brings `L0` … with it), `all_layers` or both. If None, both; or
            `all_layers` alone, where `default` would be over 20 GB before compression.
        max_shard_size: most bytes of a Parquet file before compression, such as `500MB`.
        num_proc: shards written at once, or more where there are cores for it: up to four by
            threads, more by processes.
        force: go on where the disk has less room than the folder will surely take.

    Raises:
        ActivationsError: the store is unfinished or damaged, or `dataset` holds something, or
            finished shards of another build are kept beside it, or its disk has too little room,
            or the extra `figures` is not installed.
    """
    check_configs(BUILT_CONFIGS if configs is None else configs)
    shard_bytes = parse_shard_size(max_shard_size)
    if not (dataset / MANIFEST_FILE).is_file():
        check_free(dataset)
        check_figures()
    recipe = read_recipe(store)
    records = read_samples(store)
    window = LayerWindow(recipe.n_layers, recipe.n_targets if n_targets is None else n_targets)
    rows = [record.n_rows for record in records]
    asked = configs is not None
    configs = configs_to_build(recipe, sum(rows), n_targets, configs)
    contents = store_contents(store, recipe, records)
    built_from = BuiltFrom(contents.sha256, tuple(sorted(set(configs))), shard_bytes)
    finished = _finished(dataset, built_from, window.n_targets)
    if finished is not None:
        # A run that was killed after its last deed leaves its lock, and what it had kept.
        clear_leftovers(dataset)
        remove(unfinished_path(dataset.resolve()))
        return finished
    check_free(dataset)
    planned = recipe, sum(rows), n_targets, configs
    check_build_room(dataset, *planned, force=force)
    say_build(dataset, *planned, asked=asked)
    norms = read_store_norms(store, recipe)
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
    with unfinished_folder(dataset, build_said(built_from, window.n_targets)) as begun:
        if begun.n_kept:
            note(f"{begun.n_kept} shards of {dataset} are finished: they are checked and kept")
        folder = begun.folder
        files, moments = write_shards(folder, contents, tasks, num_proc, "build", begun.finished)
        if features is not None:
            features_files, _ = write_shards(
                folder, features, feature_tasks, num_proc, "features", begun.finished
            )
            files |= features_files
        # Half of what a killed run was writing, of which nobody knows any more.
        clear_others(folder, set(files))
        manifest = Manifest(
            recipe=recipe,
            dtype=contents.dtype,
            n_targets=window.n_targets,
            n_rows=sum(rows),
            files=files,
            warnings=(f"{skipped} samples have no rows: their pictures could not be read.",)
            if skipped
            else (),
            built_from=built_from,
        )
        return finish_folder(folder, manifest, moments, norms)


def _finished(dataset: Path, built_from: BuiltFrom, n_targets: int) -> Manifest | None:
    """Return the manifest of a folder that is built already; None where there is another, or none.

    Raises:
        ActivationsError: it was built so, and a file of it is no longer as it was.
    """
    if not (dataset / MANIFEST_FILE).is_file():
        return None
    manifest = open_source(dataset).manifest
    if (manifest.built_from, manifest.n_targets) != (built_from, n_targets):
        return None
    for path, entry in manifest.files.items():
        file = dataset / path
        if not file.is_file() or file.stat().st_size != entry.bytes:
            raise ActivationsError(
                f"{dataset} was built from this store, and its {path} is missing or has changed "
                "since: move the folder away, and build again"
            )
    return manifest
