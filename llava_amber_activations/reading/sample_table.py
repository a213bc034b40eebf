"""What a dataset says of each sample: its config `samples`, or else the columns of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import numbers_in
from llava_amber_activations.formats.columns import ID, IMAGE, N_ROWS, PICTURE, SAMPLE, SOURCE
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    DEFAULT_CONFIG,
    REMEDY,
    SAMPLES,
    SAMPLES_SPLIT,
    Manifest,
)
from llava_amber_activations.formats.layers import split_name
from llava_amber_activations.formats.schema import samples_schema
from llava_amber_activations.reading.layer_rows import read_columns, split_tables
from llava_amber_activations.reading.read_ahead import Shards, read_in_order
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import Source, expected_rows

_COUNTED = {SAMPLE: pa.int32(), ID: pa.int32(), IMAGE: pa.string(), N_ROWS: pa.int32()}


def read_samples_table(source: Source, columns: Sequence[str] | None = None) -> pa.Table:
    """Return one row for each sample of config `samples`; counted from the rows where it is not.

    Args:
        columns: of the config, pictures too; where it is None, all but the pictures.

    Returns:
        The config's columns, of every sample of the query file. Without the config: `sample` int32,
        `id` int32, `image` string, `n_rows` int32 (how many rows a layer has of it), of the samples
        that have rows.

    Raises:
        ActivationsError: a shard is missing or damaged, or lacks a column.
    """
    paths = source.manifest.shards(SAMPLES, SAMPLES_SPLIT)
    if not paths:
        table = count_samples(source)
        return (
            table if columns is None else table.select(_known(columns, table.schema, source.name))
        )
    shards = Shards(
        [source.url(path) for path in paths],
        expected_rows(source, paths),
        checked=True,
        most_open=1,
    )
    schema = shards.footer(source.url(paths[0])).schema.to_arrow_schema()
    sources = SOURCE in source.manifest.recipe.extra_columns
    check_samples_schema(schema, source.url(paths[0]), sources=sources)
    if columns is None:
        columns = [name for name in schema.names if name != PICTURE]
    names = _known(columns, schema, source.name)
    tables = read_in_order(
        shards, shards.row_groups(), lambda shard, number: _read_group(shard, number, names)
    )
    return pa.concat_tables([schema.empty_table().select(names), *tables])


def _read_group(shard: ShardFile, number: int, names: list[str]) -> pa.Table:
    table = read_columns(shard, number, names)
    # Texts that are no UTF-8, which Parquet's readers let through.
    table.validate(full=True)
    return table


def check_samples_schema(schema: pa.Schema, where: str, *, sources: bool) -> None:
    """Check that a file's columns are those of config `samples`, whatever else was joined to them.

    Args:
        sources: whether each sample's source is one of them.

    Raises:
        ActivationsError: one is missing, or of another type.
    """
    pictures = PICTURE in schema.names
    for column in samples_schema(1, pa.schema([]), pictures=pictures, sources=sources):
        found = schema.field(column.name).type if schema.names.count(column.name) == 1 else None
        if found is None or not found.equals(column.type):
            raise ActivationsError(
                f"{column.name} of {where} is {found or 'missing'}, and it is to be {column.type}: "
                f"{REMEDY}"
            )


def count_samples(source: Source) -> pa.Table:
    """Return `sample`, `id`, `image` and `n_rows` of each sample that has rows, by those rows.

    Raises:
        ActivationsError: a shard is missing or damaged.
    """
    found: dict[int, list[int | str]] = {}
    for table in split_tables(source, _shards(source.manifest), [SAMPLE, ID, IMAGE]):
        samples, ids = numbers_in(table[SAMPLE]).tolist(), numbers_in(table[ID]).tolist()
        for sample, id_, image in zip(samples, ids, table[IMAGE].to_pylist(), strict=True):
            row = found.setdefault(sample, [id_, image, 0])
            row[2] = int(row[2]) + 1
    rows = [(sample, *found[sample]) for sample in sorted(found)]
    columns = list(zip(*rows, strict=True)) or [()] * len(_COUNTED)
    return pa.table(dict(zip(_COUNTED, columns, strict=True)), schema=pa.schema(_COUNTED))


def _known(columns: Sequence[str], schema: pa.Schema, where: str) -> list[str]:
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise ActivationsError(
            f"the samples of {where} have no column {missing[0]}: they have "
            f"{', '.join(schema.names)}"
        )
    return list(columns)


def _shards(manifest: Manifest) -> list[str]:
    """Return shards that name every row: those of all layers, or of any one."""
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    layers = manifest.layers(DEFAULT_CONFIG)
    return shards or (manifest.shards(DEFAULT_CONFIG, split_name(layers[0])) if layers else [])
