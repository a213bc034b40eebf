"""What `build` is asked for: a finished store, options that it allows, room for the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.asked.new_place import ITEM_BYTES, LEAST_SHARE, check_figures, check_free
from builder.shards.plan import parse_shard_size
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.room import check_room
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    DEFAULT_CONFIG,
    MANIFEST_FILE,
)
from llava_amber_activations.formats.dtypes import dataset_dtype
from llava_amber_activations.formats.layers import LayerWindow, check_n_targets
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.store.layout import read_recipe
from llava_amber_activations.store.samples import read_samples

BUILT_CONFIGS = (DEFAULT_CONFIG, ALL_LAYERS)


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
    configs: Sequence[str],
    max_shard_size: str,
) -> None:
    """Check what can be checked of a build before its tools are loaded.

    Raises:
        ActivationsError: the options are not right, the store is none or unfinished, something is
            in the way at `dataset`, or its disk has too little room.
    """
    check_configs(configs)
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
    rows = sum(record.n_rows for record in read_samples(store))
    if (dataset / MANIFEST_FILE).is_file():
        return  # built already, perhaps from this store
    check_free(dataset)
    check_figures()
    share = LEAST_SHARE[dataset_dtype(recipe.store_dtype)]
    what = f"a dataset folder of {rows} rows ({','.join(configs)})"
    check_room(dataset, share * raw_bytes(recipe, rows, n_targets, configs), what)


def raw_bytes(recipe: Recipe, rows: int, n_targets: int | None, configs: Sequence[str]) -> int:
    """Return the bytes of the vectors of a dataset's configs before compression."""
    window = LayerWindow(recipe.n_layers, n_targets or recipe.n_targets)
    n_vectors = 0
    if DEFAULT_CONFIG in configs:
        n_vectors += sum(1 + len(window.targets(layer)) for layer in window.sources)
    if ALL_LAYERS in configs:
        n_vectors += 2 * recipe.n_layers
    return rows * n_vectors * recipe.hidden_size * ITEM_BYTES[dataset_dtype(recipe.store_dtype)]
