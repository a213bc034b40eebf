"""Rows of one layer, read from `all_layers` shards or from the layer's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    arrow_to_targets,
    arrow_to_vectors,
    float_name,
    targets_to_arrow,
    vectors_to_arrow,
    width_of,
)
from llava_amber_activations.formats.columns import (
    SAMPLE,
    TARGETS,
    X,
    numbered,
    row_columns,
)
from llava_amber_activations.formats.schema import default_schema, layers_of
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.reading.wanted_layer import (
    WantedLayer,
    check_columns,
    check_types,
    layer_shards,
)
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import Source, expected_of, expected_rows
from llava_amber_activations.vectors.held_rows import (
    HeldRows,
    Numbers,
    rows_of_block,
    rows_of_table,
)
from llava_amber_activations.vectors.norms import apply_norm
from llava_amber_activations.vectors.recycled import RecycledMemory


def _shards_of(source: Source, paths: Sequence[str]) -> Shards:
    # Read in order, no shard is come back to.
    return Shards([source.url(path) for path in paths], expected_of(source, paths), most_open=1)


def check_wanted(source: Source, wanted: WantedLayer) -> None:
    """Check that a layer and its targets can be had, by the first shard's footer.

    Raises:
        ActivationsError: they cannot.
    """
    path = layer_shards(source, wanted)[0]
    footer = _shards_of(source, [path]).footer(source.url(path))
    check_columns(footer.schema.to_arrow_schema(), wanted, source.url(path))


def tables_of_layer(source: Source, paths: list[str], wanted: WantedLayer) -> Iterator[pa.Table]:
    """Yield a layer's rows, a row group at a time, with the columns of the default config.

    Args:
        paths: of the shards, in their order.
    """
    shards = _shards_of(source, paths)
    yield from read_in_order(
        shards, shards.row_groups(), lambda shard, number: read_layer(shard, number, wanted)
    )


def layer_pieces(
    source: Source,
    paths: list[str],
    wanted: WantedLayer,
    ranges: Sequence[range],
    memory: RecycledMemory,
) -> Iterator[tuple[int, list[Vectors]]]:
    """Yield a layer's `x` and targets of some ranges of rows, piece by piece.

    Only row groups that hold a wanted row are read, a few ahead; no more of them is held.

    Args:
        ranges: of rows; they ascend, do not overlap, and none is empty.

    Yields:
        A range's number, and the next of its rows: each [rows, H], contiguous.
    """
    shards = _shards_of(source, paths)
    groups: list[RowGroup] = []
    cuts: list[list[tuple[int, slice]]] = []
    number = row = 0
    for group in shards.row_groups():
        stop = row + group.n_rows
        of_group = []
        while number < len(ranges) and ranges[number].start < stop:
            rows = ranges[number]
            of_group.append((number, slice(max(rows.start - row, 0), min(rows.stop, stop) - row)))
            if rows.stop > stop:
                break
            number += 1
        if of_group:
            groups.append(group)
            cuts.append(of_group)
        row = stop
    blocks = read_in_order(
        shards, groups, lambda shard, number: _read_vectors(shard, number, wanted, memory)
    )
    for of_group, block in zip(cuts, blocks, strict=True):
        for number, cut in of_group:
            yield number, [vectors[cut] for vectors in block]


def x_tables(source: Source, layer: int) -> Iterator[pa.Table]:
    """Yield `sample` and `x` of a layer's own split, a row group at a time, without its targets."""
    shards = _shards_of(source, layer_shards(source, WantedLayer(layer, 1)))

    def read(shard: ShardFile, number: int) -> pa.Table:
        check_types(shard.schema, [X], shard.url)
        return read_columns(shard, number, [SAMPLE, X], use_threads=True)

    yield from read_in_order(shards, shards.row_groups(), read)


def _read_vectors(
    shard: ShardFile, group: int, wanted: WantedLayer, memory: RecycledMemory
) -> list[Vectors]:
    """Read one row group's `x` and targets: each [rows, H]."""
    names = check_columns(shard.schema, wanted, shard.url)
    found = read_vectors(shard, group, names, memory=memory) if names else None
    if found is not None:
        _at_site(found[names[0]], wanted)
        return [found[name] for name in names]
    table = read_layer(shard, group, wanted)
    targets = arrow_to_targets(table[TARGETS])
    return [arrow_to_vectors(table[X]), *np.ascontiguousarray(targets.swapaxes(0, 1))]


def split_tables(
    source: Source, paths: list[str], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of some shards as they are, a row group at a time."""
    # Features are as wide as their transcoder, of which the manifest says nothing.
    urls = [source.url(path) for path in paths]
    shards = Shards(urls, expected_rows(source, paths), most_open=1)
    yield from read_in_order(
        shards,
        shards.row_groups(),
        lambda shard, number: shard.parquet.read_row_group(number, columns=columns),
    )


def layer_schema(schema: pa.Schema, where: object) -> pa.Schema:
    """Return the schema of `read_layer`'s tables for a shard of `schema`."""
    shape = width_of(schema), float_name(schema), layers_of(schema, where)
    return default_schema(*shape, schema.names)


def read_layer(shard: ShardFile, group: int, wanted: WantedLayer) -> pa.Table:
    """Read one row group of a shard as a layer's rows, fetching only the columns it needs.

    Raises:
        ActivationsError: the shard does not hold the layer or one of its targets.
    """
    schema = shard.schema
    names = check_columns(schema, wanted, shard.url)
    if not names:
        return _from_own_split(shard, group, wanted)
    n_rows, width = shard.parquet.metadata.row_group(group).num_rows, width_of(schema)
    x = np.empty((n_rows, width), float_name(schema))
    targets = np.empty((n_rows, len(names) - 1, width), x.dtype)
    out = [x, *(targets[:, number] for number in range(len(names) - 1))]
    leading = read_columns(shard, group, row_columns(schema.names))
    if read_vectors(shard, group, names, out=out) is None:
        table = read_columns(shard, group, names, use_threads=True)
        for name, into in zip(names, out, strict=True):
            into[...] = arrow_to_vectors(table[name])
    _at_site(x, wanted)
    columns = [*leading.columns, vectors_to_arrow(x), targets_to_arrow(targets)]
    return pa.Table.from_arrays(columns, schema=layer_schema(schema, shard.url))


def read_layer_rows(
    shard: ShardFile, group: int, wanted: WantedLayer, memory: RecycledMemory
) -> HeldRows:
    """Read one row group of a shard for batches: no strings, and no Arrow columns made of it.

    Raises:
        ActivationsError: as `read_layer`.
    """
    schema = shard.schema
    names = check_columns(schema, wanted, shard.url)
    if not names:
        return rows_of_table(read_layer(shard, group, wanted))
    n_rows, width = shard.parquet.metadata.row_group(group).num_rows, width_of(schema)
    block = memory.empty((n_rows, len(names), width), np.dtype(float_name(schema)))
    out = [block[:, number] for number in range(len(names))]
    if read_vectors(shard, group, names, out=out) is None:
        return rows_of_table(read_layer(shard, group, wanted))
    _at_site(out[0], wanted)
    numbers = read_row_numbers(shard, group)
    return rows_of_block(numbers, block, {X: (width,), TARGETS: (len(names) - 1, width)})


def read_row_numbers(shard: ShardFile, group: int) -> dict[str, Numbers]:
    """Read what a batch says of the rows of one row group: [rows] each, `kind` as its code."""
    return rows_of_table(read_columns(shard, group, numbered(shard.schema.names))).numbers


def _at_site(x: Vectors, wanted: WantedLayer) -> None:
    """Turn a layer's `x`, [rows, H], as a shard holds it into `x` at the site that is wanted.

    Raises:
        ActivationsError: its dtype cannot hold a value of it.
    """
    if wanted.norm is not None:
        vectors = torch.from_numpy(x)
        apply_norm(vectors, wanted.norm, out=vectors)


def read_columns(
    shard: ShardFile, group: int, names: Sequence[str] | None, *, use_threads: bool = False
) -> pa.Table:
    """Read columns of one row group by pyarrow, which leaves out pages that it does not know."""
    columns = None if names is None else list(names)
    table = shard.parquet.read_row_group(group, columns=columns, use_threads=use_threads)
    n_rows = shard.parquet.metadata.row_group(group).num_rows
    if table.num_rows != n_rows:
        raise ActivationsError(
            f"row group {group} of {shard.url} is damaged (its pages hold {table.num_rows} of "
            f"{n_rows} rows): build or download the dataset again"
        )
    return table


def _from_own_split(shard: ShardFile, group: int, wanted: WantedLayer) -> pa.Table:
    table = read_columns(shard, group, None, use_threads=True)
    targets = arrow_to_targets(table[TARGETS])
    if targets.shape[1] > wanted.n_targets:
        column = targets_to_arrow(targets[:, : wanted.n_targets])
        table = table.set_column(
            table.schema.get_field_index(TARGETS), table.field(TARGETS), column
        )
    if wanted.norm is not None:
        # What Arrow holds is not to be written to.
        x = arrow_to_vectors(table[X]).copy()
        _at_site(x, wanted)
        number = table.schema.get_field_index(X)
        table = table.set_column(number, table.field(X), vectors_to_arrow(x, table.field(X).type))
    return table
