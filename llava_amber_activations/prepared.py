"""All layers of a dataset, prepared by `datasets` in its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets

from llava_amber_activations.formats.columns import row_columns
from llava_amber_activations.formats.dataset_folder import ALL_LAYERS, ALL_LAYERS_SPLIT
from llava_amber_activations.sources.shard_file import is_remote, source_errors
from llava_amber_activations.sources.source import Source


def load_all_layers(
    source: Source, columns: Sequence[str], cache_dir: str | Path | None
) -> datasets.Dataset:
    """Prepare some vectors of `all_layers`: an Arrow file in the cache, which is then mapped.

    A repo's shards are downloaded whole, whichever columns are wanted.

    Args:
        columns: names of vectors; what is said of a row comes with them.
        cache_dir: where `datasets` prepares; its own cache where it is None.

    Raises:
        ActivationsError: the Hub does not answer.
    """
    revision = source.root.rpartition("@")[2] if is_remote(source.root) else None
    with source_errors(source.name, source.root):
        dataset: datasets.Dataset = datasets.load_dataset(
            source.name if is_remote(source.root) else source.root,
            ALL_LAYERS,
            split=ALL_LAYERS_SPLIT,
            columns=[*row_columns(source.manifest.recipe.extra_columns), *columns],
            revision=revision,
            cache_dir=None if cache_dir is None else str(cache_dir),
        )
    return dataset
