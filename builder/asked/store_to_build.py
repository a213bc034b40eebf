"""What `build` is asked for: a finished store, options that it allows, room for the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.asked.new_place import (
    ITEM_BYTES,
    LEAST_SHARE,
    bytes_kept,
    check_figures,
    check_free,
)
from builder.samples.asked import NOTHING_ASKED, SamplesAsked, picture_bytes
from builder.shards.plan import parse_shard_size
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.room import check_room, free_bytes
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    DEFAULT_CONFIG,
    MANIFEST_FILE,
)
from llava_amber_activations.formats.dtypes import dataset_dtype
from llava_amber_activations.formats.layers import (
    LayerWindow,
    check_n_targets,
    layers_text,
    mlp_out_name,
    x_name,
)
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.layout import read_recipe
from llava_amber_activations.store.samples import read_samples

BUILT_CONFIGS = (DEFAULT_CONFIG, ALL_LAYERS)
# `default` says nothing that `all_layers` does not, in several times the bytes. What 20 GB more
# cost is room on most disks, and minutes; beyond that somebody must have asked for it.
MOST_DEFAULT_BYTES = 20_000_000_000


def check_configs(configs: Sequence[str]) -> None:
    """Check that configs are those that `build` makes.

    Raises:
        ActivationsError: one is not, or there is none.
    """
    if not configs or set(configs) - set(BUILT_CONFIGS):
        raise ActivationsError(
            f"the configs to build are {' and '.join(BUILT_CONFIGS)}, not '{','.join(configs)}'"
        )


def check_build(
    store: Path,
    dataset: Path,
    n_targets: int | None,
    configs: Sequence[str] | None,
    max_shard_size: str,
    samples: SamplesAsked = NOTHING_ASKED,
    *,
    force: bool = False,
) -> None:
    """Check what can be checked of a build before its tools are loaded.

    Args:
        configs, samples: as `build` takes them.
        force: go on where the disk has too little room.

    Raises:
        ActivationsError: the options are not right, the store is none or unfinished, a file or a
            picture that is asked for is missing, something is in the way at `dataset`, or its disk
            has too little room.
    """
    check_configs(BUILT_CONFIGS if configs is None else configs)
    parse_shard_size(max_shard_size)
    if not store.is_dir():
        raise ActivationsError(f"there is no such folder: {store}")
    if (store / MANIFEST_FILE).is_file():
        raise ActivationsError(
            f"{store} is a dataset folder, which is built already: build takes a capture store"
        )
    recipe = read_recipe(store)
    if n_targets is not None:
        check_n_targets(n_targets, recipe.n_layers)
    records = read_samples(store)
    rows = sum(record.n_rows for record in records)
    samples.digests()
    if (dataset / MANIFEST_FILE).is_file():
        return  # built already, perhaps from this store
    check_free(dataset)
    check_figures()
    configs = configs_to_build(recipe, rows, n_targets, configs)
    n_picture_bytes = picture_bytes(samples, records)
    check_build_room(dataset, recipe, rows, n_targets, configs, n_picture_bytes, force=force)


def configs_to_build(
    recipe: Recipe, rows: int, n_targets: int | None, asked: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the configs that were asked for; where none were, those that a build brings unasked.

    These are both, or `all_layers` alone where `default` takes more than `MOST_DEFAULT_BYTES`, or
    the layers that were kept make no split of it.

    Raises:
        ActivationsError: `default` was asked for, and has no split.
    """
    is_empty = recipe.layers is not None and not _split_layers(recipe, n_targets)
    if asked is not None:
        if is_empty and DEFAULT_CONFIG in asked:
            raise ActivationsError(
                f"the config {DEFAULT_CONFIG} would be empty: {_why_empty(recipe, n_targets)}. "
                f"Give a smaller --n-targets, or --configs {ALL_LAYERS}"
            )
        return tuple(asked)
    if is_empty:
        return (ALL_LAYERS,)
    default = raw_bytes(recipe, rows, n_targets, [DEFAULT_CONFIG])
    return BUILT_CONFIGS if default <= MOST_DEFAULT_BYTES else (ALL_LAYERS,)


def check_build_room(
    dataset: Path,
    recipe: Recipe,
    rows: int,
    n_targets: int | None,
    configs: Sequence[str],
    n_picture_bytes: int,
    *,
    force: bool,
) -> None:
    """Check that the disk has room for what a build writes at least, beside what is kept of it.

    Args:
        n_picture_bytes: of the pictures that are written as they are.

    Raises:
        ActivationsError: it has not, and `force` is not set.
    """
    share = LEAST_SHARE[dataset_dtype(recipe.store_dtype)]
    kept = bytes_kept(dataset)
    least = share * raw_bytes(recipe, rows, n_targets, configs) + n_picture_bytes - kept
    rest = "the rest of " if kept else ""
    what = f"{rest}a dataset folder of {rows} rows ({','.join(configs)})"
    check_room(dataset, least, what, force=force)


def say_build(
    dataset: Path,
    recipe: Recipe,
    rows: int,
    n_targets: int | None,
    configs: Sequence[str],
    *,
    asked: bool,
) -> None:
    """Say what a build will write; and where it leaves `default` out, how layers are read then.

    Args:
        asked: whether somebody chose the configs.
    """
    store_bytes = raw_bytes(recipe, rows, n_targets, [ALL_LAYERS])
    sizes = {name: raw_bytes(recipe, rows, n_targets, [name]) for name in BUILT_CONFIGS}
    each = " and ".join(
        f"{readable_size(sizes[name])} of {name} ({sizes[name] / store_bytes:.1f} x the vectors)"
        for name in configs
    )
    share = LEAST_SHARE[dataset_dtype(recipe.store_dtype)]
    note(
        f"{dataset}: {rows} rows, {each}, before compression, which leaves {share} of it or more; "
        f"its disk has {readable_size(free_bytes(dataset))} free"
    )
    if asked or DEFAULT_CONFIG in configs:
        return
    # A layer with its first target; with its own MLP output, where no layer has targets.
    layer = next(iter(_split_layers(recipe, n_targets)), recipe.kept_layers[0])
    target = layer + 1 if _split_layers(recipe, n_targets) else layer
    columns = f"['{x_name(layer)}', '{mlp_out_name(target)}']"
    instead = (
        f"load_dataset('{dataset}', '{ALL_LAYERS}', columns={columns}), load_activations, "
        "open_layer and Activations read layers without it"
    )
    if not _split_layers(recipe, n_targets):
        note(f"default is left out, because {_why_empty(recipe, n_targets)}: {instead}")
        return
    note(
        f"default is left out, because its {readable_size(sizes[DEFAULT_CONFIG])} are more than "
        f"{readable_size(MOST_DEFAULT_BYTES)}: {instead}; --configs {','.join(BUILT_CONFIGS)} "
        "writes it"
    )


def raw_bytes(recipe: Recipe, rows: int, n_targets: int | None, configs: Sequence[str]) -> int:
    """Return the bytes of the vectors of a dataset's configs before compression."""
    window = _window(recipe, n_targets)
    n_vectors = 0
    if DEFAULT_CONFIG in configs:
        splits = _split_layers(recipe, n_targets)
        n_vectors += sum(1 + len(window.targets(layer)) for layer in splits)
    if ALL_LAYERS in configs:
        n_vectors += 2 * len(recipe.kept_layers)
    return rows * n_vectors * recipe.hidden_size * ITEM_BYTES[dataset_dtype(recipe.store_dtype)]


def _window(recipe: Recipe, n_targets: int | None) -> LayerWindow:
    return LayerWindow(recipe.n_layers, n_targets or recipe.n_targets)


def _split_layers(recipe: Recipe, n_targets: int | None) -> tuple[int, ...]:
    """Return the layers that have a split in `default`."""
    return _window(recipe, n_targets).whole_sources(recipe.kept_layers)


def _why_empty(recipe: Recipe, n_targets: int | None) -> str:
    return (
        f"of the layers that were captured, {layers_text(recipe.kept_layers)}, none has the "
        f"{_window(recipe, n_targets).n_targets} layers after it that would be its targets"
    )
