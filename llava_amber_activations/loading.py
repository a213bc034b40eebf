"""Opening one layer of a dataset of activations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesDict, DataFilesList

from llava_amber_activations.dataset_builder import LlavaAmberActivations
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dataset_folder import NORMS_FILE
from llava_amber_activations.formats.layers import split_name
from llava_amber_activations.formats.recipe import XSite
from llava_amber_activations.reading.wanted_layer import layer_shards, wanted_layer
from llava_amber_activations.sources.shard_file import source_errors
from llava_amber_activations.sources.sites import MLP_INPUT
from llava_amber_activations.sources.source import Source, expected_of, open_source
from llava_amber_activations.streams.shard_stream import digest_of


def load_activations(
    source: str | Path,
    layer: int,
    n_targets: int | None = None,
    *,
    first_target: int = 1,
    x_site: XSite | None = None,
    streaming: bool = False,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one layer: its `x` and its targets, with the sample and position of every row.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        layer: L, 0-based.
        n_targets: how many of the MLP outputs after `x`; as many as the dataset was made with
            where it is None.
        first_target: 1 starts the targets at L+1 (this project's convention), 0 at L itself.
        x_site: where `x` is read, as the dataset was captured where it is None. `mlp_in` is
            computed from `resid_mid` where the dataset holds the model's norms.
        streaming: read as it is iterated, instead of preparing an Arrow file in the cache first.
        revision: branch, tag or commit on the Hub.
        cache_dir: where `datasets` prepares; its own cache where it is None.

    Returns:
        A dataset with the columns that say which row a row is (`sample`, `id`, `image`, `position`,
        `token_id`, `kind`, `patch_row`, `patch_col`, and what the recipe's `extra_columns` names),
        `x` (H floats) and `targets` (n times H floats).

    Raises:
        ActivationsError: the source is not a dataset of activations, or does not hold the layer or
            as many targets, or `x` cannot be had at `x_site`.
    """
    return load_layer(
        open_source(source, revision),
        layer,
        n_targets,
        first_target=first_target,
        x_site=x_site,
        streaming=streaming,
        cache_dir=cache_dir,
    )


def load_layer(
    opened: Source,
    layer: int,
    n_targets: int | None,
    *,
    first_target: int,
    x_site: XSite | None,
    streaming: bool,
    cache_dir: str | Path | None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one layer of a source that is open, as `load_activations` does."""
    wanted = wanted_layer(opened, layer, n_targets, first_target, x_site)
    shards = layer_shards(opened, wanted)
    urls = [opened.url(path) for path in shards]
    split = split_name(layer)
    checksums = [opened.manifest.files[path].sha256 for path in shards]
    name, made_of = f"{split}-{wanted.n_targets}-{first_target}", checksums
    if wanted.norm is not None:
        name += f"-{MLP_INPUT}"
        made_of = [*checksums, opened.manifest.files[NORMS_FILE].sha256]
    with source_errors(opened.name, opened.root), _missing_files():
        # What is prepared is named after what is in it, not after where it came from: it is found
        # again offline, where the shards have no address. They are listed, so nobody is asked.
        files = DataFilesList(urls, origin_metadata=[("",)] * len(urls))
        builder = LlavaAmberActivations(
            dataset_name="llava_amber_activations",
            config_id=name,
            data_files=DataFilesDict({"train": files}),
            hash=digest_of(made_of),
            cache_dir=None if cache_dir is None else str(cache_dir),
            n_targets=wanted.n_targets,
            first_target=first_target,
            layers=[layer],
        )
        builder.expected = expected_of(opened, shards)
        builder.norms = {} if wanted.norm is None else {layer: wanted.norm}
        if streaming:
            builder.checksums = dict(zip(urls, checksums, strict=True))
            return builder.as_streaming_dataset(split=split)
        _prepare(builder)
        dataset: Any = builder.as_dataset(split=split)
        return dataset


@contextmanager
def _missing_files() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ActivationsError(
            f"a shard of the dataset is missing ({error}): build or download the dataset again"
        ) from None


def _prepare(builder: LlavaAmberActivations) -> None:
    """Prepare the Arrow file; what is wrong with a shard is said as it was found.

    It is one file, whose mapping is one buffer: batches are copied out of it in one call.
    """
    try:
        builder.download_and_prepare(max_shard_size=sys.maxsize)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ActivationsError):
            raise error.__cause__ from None
        raise
