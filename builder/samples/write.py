"""Writing config `samples`: one Parquet file that anything reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder.samples.asked import SamplesAsked
from builder.samples.pictures import Pictures
from builder.samples.table import Columns, columns_of_counts, columns_of_records
from builder.shards.writer import open_shard
from llava_amber_activations.formats.dataset_folder import (
    SAMPLES,
    SAMPLES_SPLIT,
    FileEntry,
    shard_path,
)
from llava_amber_activations.formats.schema import samples_schema, with_features
from llava_amber_activations.store.samples import SampleRecord

# Pictures that samples share are in a row group once, as entries of a dictionary; pyarrow would
# give up a dictionary at 1 MiB.
_MOST_DICTIONARY_BYTES = 64 * 2**20


def write_samples(
    folder: Path,
    records: Sequence[SampleRecord],
    joined: pa.Table,
    asked: SamplesAsked,
    n_layers: int,
    *,
    sources: bool = False,
) -> dict[str, FileEntry]:
    """Write the config of a captured store into a dataset folder.

    Args:
        joined: as `columns_of_records` takes it; and so `sources`.

    Returns:
        The file's entry, by its path.

    Raises:
        ActivationsError: a picture is missing, or not the one that was captured.
    """
    folder_of_pictures = asked.image_dir
    pictures = (
        None if folder_of_pictures is None else Pictures(folder_of_pictures, asked.picture_size)
    )
    schema = samples_schema(n_layers, joined.schema, pictures=pictures is not None, sources=sources)
    columns = columns_of_records(records, joined, pictures, sources=sources)
    return _write(folder, schema, columns)


def write_counted_samples(
    folder: Path, rows_of_samples: Mapping[int, int], n_layers: int
) -> dict[str, FileEntry]:
    """Write the config of samples of which nothing but their rows is known, by their numbers."""
    schema = samples_schema(n_layers, pa.schema([]), pictures=False)
    return _write(folder, schema, columns_of_counts(rows_of_samples))


def _write(folder: Path, schema: pa.Schema, groups: Iterable[Columns]) -> dict[str, FileEntry]:
    path = shard_path(SAMPLES, SAMPLES_SPLIT, 0, 1)
    with open_shard(folder / path, with_features(schema), _encoding(schema)) as shard:
        for columns in groups:
            shard.write_group(columns)
    return {path: shard.entry}


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return what every reader of Parquet knows: dictionaries, with minima and maxima."""
    return {
        "use_dictionary": True,
        "dictionary_pagesize_limit": _MOST_DICTIONARY_BYTES,
        "write_statistics": [field.name for field in schema if not pa.types.is_nested(field.type)],
    }
