"""Building a dataset folder from a capture store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from builder.asked.new_place import check_figures, check_free, clear_leftovers
from builder.asked.store_to_build import (
    BUILT_CONFIGS,
    check_build_room,
    check_configs,
    configs_to_build,
    say_build,
)
from builder.contents.contents import Contents
from builder.contents.store_features import FeaturesContents, features_contents
from builder.contents.store_rows import StoreContents, store_contents
from builder.folder.new_folder import finish_folder
from builder.folder.ranks import Ranks, begun_launch, take_part, wait_for_others
from builder.folder.unfinished import (
    Unfinished,
    build_said,
    clear_others,
    is_begun,
    unfinished_at,
    unfinished_folder,
)
from builder.samples.asked import NOTHING_ASKED, SamplesAsked, picture_bytes
from builder.samples.joined import joined_columns
from builder.samples.write import write_samples
from builder.shards.plan import parse_shard_size
from builder.shards.tasks import (
    ShardTask,
    plan_all_layers,
    plan_features,
    plan_layer,
    plan_moments,
)
from builder.shards.vector_moments import VectorMoments
from builder.shards.write import finish_shards, write_shards
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import remove, unfinished_path
from llava_amber_activations.formats.columns import SOURCE
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    DEFAULT_CONFIG,
    MANIFEST_FILE,
    SAMPLES,
    BuiltFrom,
    Manifest,
)
from llava_amber_activations.formats.layers import LayerWindow, layers_text
from llava_amber_activations.sources.source import open_source
from llava_amber_activations.store.layout import read_recipe, vector_names
from llava_amber_activations.store.norms_file import read_store_norms
from llava_amber_activations.store.samples import read_samples

DEFAULT_SHARD_SIZE = "500MB"
ALONE = Ranks()


def build(
    store: Path,
    dataset: Path,
    *,
    n_targets: int | None = None,
    configs: Sequence[str] | None = None,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    samples: SamplesAsked = NOTHING_ASKED,
    num_proc: int = 1,
    force: bool = False,
    ranks: Ranks = ALONE,
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
        samples: what config `samples` holds beside what the store says: annotations, pictures.
        num_proc: shards written at once, or more where there are cores for it: up to four by
            threads, more by processes.
        force: go on where the disk has less room than the folder will surely take.
        ranks: which process of a launch this is. Shards are dealt out to all of them; rank 0 joins
            what they made, and the others return when the folder is whole.

    Raises:
        ActivationsError: the store is unfinished or damaged, or `dataset` holds something, or
            finished shards of another build are kept beside it, or its disk has too little room,
            or the extra `figures` is not installed, or what `samples` names does not fit the store.
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
    built_from = BuiltFrom(
        store_sha256=contents.sha256,
        configs=tuple(sorted(set(configs))),
        max_shard_bytes=shard_bytes,
        joined=samples.digests(),
        pictures=samples.image_dir is not None,
        picture_size=samples.picture_size,
    )
    finished = _finished(dataset, built_from, window.n_targets)
    if finished is not None:
        # A run that was killed after its last deed leaves its lock, and what it had kept.
        clear_leftovers(dataset)
        remove(unfinished_path(dataset.resolve()))
        return finished
    check_free(dataset)
    planned = recipe, sum(rows), n_targets, configs
    check_build_room(dataset, *planned, picture_bytes(samples, records), force=force)
    joined = joined_columns(records, samples, shown=ranks.is_first)
    norms = read_store_norms(store, recipe)
    tasks = _plan_vectors(contents, rows, window, recipe.kept_layers, configs, shard_bytes)
    every: list[tuple[Contents, list[ShardTask], str]] = [(contents, tasks, "build")]
    features = features_contents(store, recipe, contents)
    if features is not None:
        every.append((features, _plan_features(features, shard_bytes), "features"))
    skipped = sum(record.error is not None for record in records)
    said = build_said(built_from, window.n_targets)

    def make_mine(begun: Unfinished) -> None:
        for what, of_all, label in every:
            mine = of_all[ranks.rank :: ranks.world_size]
            finish_shards(
                begun.folder, what, mine, num_proc, label, begun.finished, shown=ranks.is_first
            )

    if not ranks.is_first:
        begun = unfinished_at(dataset, said)
        take_part(
            begun.ranks,
            dataset,
            ranks,
            lambda: is_begun(dataset, said),
            lambda: make_mine(begun),
        )
        return open_source(dataset).manifest
    with unfinished_folder(dataset, said) as begun, ExitStack() as launched:
        say_build(dataset, *planned, asked=asked)
        if begun.n_kept:
            note(
                f"{begun.n_kept} shards of {dataset} were finished before: those whose checksums "
                "are right are kept"
            )
        folder, finished_shards = begun.folder, begun.finished
        launch = None
        if ranks.world_size > 1:
            launch = launched.enter_context(begun_launch(begun.ranks))
        # First, because a picture that is not the one that was captured ends the build.
        sources = SOURCE in recipe.extra_columns
        files = write_samples(folder, records, joined, samples, recipe.n_layers, sources=sources)
        if launch is not None:
            make_mine(begun)
            wait_for_others(begun.ranks, launch, ranks)
            finished_shards = dataclasses.replace(finished_shards, are_checked=True)
        moments: dict[str, VectorMoments] = {}
        for what, of_all, label in every:
            entries, of_vectors = write_shards(
                folder, what, of_all, num_proc, label, finished_shards
            )
            files |= entries
            moments |= of_vectors
        # Half of what a killed run was writing, of which nobody knows any more.
        clear_others(folder, set(files))
        manifest = Manifest(
            recipe=recipe,
            dtype=contents.dtype,
            n_targets=window.n_targets,
            n_rows=sum(rows),
            files=files,
            warnings=(*_skipped(skipped), *_left_out(recipe.layers, window, configs)),
            built_from=built_from,
        )
        return finish_folder(folder, manifest, moments, norms)


def _skipped(n_samples: int) -> list[str]:
    if not n_samples:
        return []
    return [f"{n_samples} samples have no rows: their pictures could not be read."]


def _left_out(
    kept: tuple[int, ...] | None, window: LayerWindow, configs: Sequence[str]
) -> list[str]:
    """Say which layers a capture kept, and which of them have no split for it."""
    if kept is None:
        return []
    whole = window.whole_sources(kept)
    said = f"Of the model's {window.n_layers} layers the capture kept {layers_text(kept)}"
    if not whole:
        return [f"{said}, none with all of its {window.n_targets} targets: there are no splits."]
    if DEFAULT_CONFIG not in configs:
        return [f"{said}."]
    return [f"{said}; {layers_text(whole)} are splits, with all of their targets."]


def _plan_vectors(
    contents: StoreContents,
    rows: Sequence[int],
    window: LayerWindow,
    kept: range | tuple[int, ...],
    configs: Sequence[str],
    shard_bytes: int,
) -> list[ShardTask]:
    """Plan the shards of configs, and the moments of every vector."""
    tasks: list[ShardTask] = []
    if DEFAULT_CONFIG in configs:
        for layer in window.whole_sources(kept):
            tasks += plan_layer(contents, rows, layer, window.targets(layer), shard_bytes)
    plan = plan_all_layers if ALL_LAYERS in configs else plan_moments
    return tasks + plan(contents, rows, vector_names(kept), shard_bytes)


def _plan_features(features: FeaturesContents, shard_bytes: int) -> list[ShardTask]:
    """Plan the shards of all layers that have features, a row for each sample."""
    tasks: list[ShardTask] = []
    for layer in features.layers:
        tasks += plan_features(features, [1] * features.n_samples, layer, shard_bytes)
    return tasks


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
    if SAMPLES not in manifest.all_configs:
        return None  # of a release that did not write it
    for path, entry in manifest.files.items():
        file = dataset / path
        if not file.is_file() or file.stat().st_size != entry.bytes:
            raise ActivationsError(
                f"{dataset} was built from this store, and its {path} is missing or has changed "
                "since: move the folder away, and build again"
            )
    return manifest
