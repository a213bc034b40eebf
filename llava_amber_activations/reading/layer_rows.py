"""Rows of one layer, read from `all_layers` shards or from the layer's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

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
from llava_amber_activations.formats.columns import INTEGERS, LEADING, TARGETS, X
from llava_amber_activations.formats.schema import default_schema, layers_of
from llava_amber_activations.reading.read_ahead import Shards, read_in_order
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.reading.wanted_layer import WantedLayer, check_columns, layer_shards
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import Source, expected_of, expected_rows
from llava_amber_activations.vectors.gather import (
    RowPlaces,
    VectorPlaces,
    places_in_array,
    places_in_table,
    spans_of,
)
from llava_amber_activations.vectors.recycled import RecycledMemory


def _shards_of(source: Source, paths: Sequence[str]) -> Shards:
    return Shards([source.url(path) for path in paths], expected_of(source, paths))


def check_wanted(source: Source, view: WantedLayer) -> None:
    """Check that a layer and its targets can be had, by the first shard's footer.

    Raises:
        ActivationsError: they cannot.
    """
    path = layer_shards(source, view)[0]
    footer = _shards_of(source, [path]).footer(source.url(path))
    check_columns(footer.schema.to_arrow_schema(), view, source.url(path))


def layer_tables(source: Source, view: WantedLayer) -> Iterator[pa.Table]:
    """Yield a layer's rows, a row group at a time, with the columns of the default config."""
    yield from tables_of_layer(source, layer_shards(source, view), view)


def tables_of_layer(source: Source, paths: list[str], view: WantedLayer) -> Iterator[pa.Table]:
    """Yield a layer's rows as `layer_tables` does, from shards that the caller has chosen."""
    shards = _shards_of(source, paths)
    yield from read_in_order(
        shards, shards.row_groups(), lambda shard, number: read_layer(shard, number, view)
    )


def layer_ranges(
    source: Source,
    paths: list[str],
    view: WantedLayer,
    ranges: Sequence[range],
    memory: RecycledMemory,
) -> Iterator[list[Vectors]]:
    """Yield a layer's `x` and targets of each of some ranges of rows: each [rows, H], contiguous.

    The ranges ascend and do not overlap. Only row groups that hold a wanted row are read.
    """
    shards = _shards_of(source, paths)
    groups, starts, row = [], [], 0
    for group in shards.row_groups():
        span = range(row, row + group.n_rows)
        if any(wanted.start < span.stop and span.start < wanted.stop for wanted in ranges):
            groups.append(group)
            starts.append(span.start)
        row = span.stop
    blocks = read_in_order(
        shards, groups, lambda shard, number: _read_vectors(shard, number, view, memory)
    )
    unread = zip(starts, blocks, strict=True)
    held: list[tuple[int, list[Vectors]]] = []
    for wanted in ranges:
        held = [(start, block) for start, block in held if start + len(block[0]) > wanted.start]
        while not held or held[-1][0] + len(held[-1][1][0]) < wanted.stop:
            held.append(next(unread))
        rows = [
            slice(max(wanted.start - start, 0), min(wanted.stop - start, len(block[0])))
            for start, block in held
        ]
        parts = [
            [vectors[cut] for vectors in block] for cut, (_, block) in zip(rows, held, strict=True)
        ]
        if len(parts) == 1:
            yield parts[0]
            continue
        shape = (len(parts[0]), len(wanted), parts[0][0].shape[1])
        joined = memory.empty(shape, parts[0][0].dtype)
        for pieces, into in zip(zip(*parts, strict=True), joined, strict=True):
            np.concatenate(pieces, out=into)
        yield list(joined)


def _read_vectors(
    shard: ShardFile, group: int, view: WantedLayer, memory: RecycledMemory
) -> list[Vectors]:
    """Read one row group's `x` and targets: each [rows, H]."""
    names = check_columns(shard.schema, view, shard.url)
    found = read_vectors(shard, group, names, memory=memory) if names else None
    if found is not None:
        return [found[name] for name in names]
    table = read_layer(shard, group, view)
    targets = arrow_to_targets(table[TARGETS])
    return [arrow_to_vectors(table[X]), *np.ascontiguousarray(targets.swapaxes(0, 1))]


def split_tables(
    source: Source, paths: list[str], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of some shards as they are, a row group at a time."""
    # Features are as wide as their transcoder, of which the manifest says nothing.
    shards = Shards([source.url(path) for path in paths], expected_rows(source, paths))
    yield from read_in_order(
        shards,
        shards.row_groups(),
        lambda shard, number: shard.parquet.read_row_group(number, columns=columns),
    )


def layer_schema(schema: pa.Schema, view: WantedLayer, where: object) -> pa.Schema:
    """Return the schema of `read_layer`'s tables for a shard of `schema`."""
    return default_schema(width_of(schema), float_name(schema), layers_of(schema, where))


def read_layer(shard: ShardFile, group: int, view: WantedLayer) -> pa.Table:
    """Read one row group of a shard as a layer's rows, fetching only the columns it needs.

    Raises:
        ActivationsError: the shard does not hold the layer or one of its targets.
    """
    schema = shard.schema
    names = check_columns(schema, view, shard.url)
    if not names:
        return _from_own_split(shard, group, view)
    n_rows, width = shard.parquet.metadata.row_group(group).num_rows, width_of(schema)
    x = np.empty((n_rows, width), float_name(schema))
    targets = np.empty((n_rows, len(names) - 1, width), x.dtype)
    out = [x, *(targets[:, number] for number in range(len(names) - 1))]
    leading = _columns(shard, group, LEADING)
    if read_vectors(shard, group, names, out=out) is None:
        table = _columns(shard, group, names, use_threads=True)
        for name, into in zip(names, out, strict=True):
            into[...] = arrow_to_vectors(table[name])
    columns = [*(leading[name] for name in LEADING), vectors_to_arrow(x), targets_to_arrow(targets)]
    return pa.Table.from_arrays(columns, schema=layer_schema(schema, view, "the shard"))


def read_layer_places(
    shard: ShardFile, group: int, view: WantedLayer, memory: RecycledMemory
) -> RowPlaces:
    """Read one row group of a shard for batches: no strings, and no Arrow columns made of it.

    Raises:
        ActivationsError: as `read_layer`.
    """
    names = check_columns(shard.schema, view, shard.url)
    vectors = read_vectors(shard, group, names, memory=memory) if names else None
    if vectors is None:
        return places_in_table(read_layer(shard, group, view))
    leading = _columns(shard, group, INTEGERS)
    addresses = [places_in_array(vectors[name]) for name in names]
    width, dtype = vectors[names[0]].shape[1], vectors[names[0]].dtype
    return RowPlaces(
        integers=places_in_table(leading).integers,
        vectors={
            X: VectorPlaces(addresses[0][:, None], (width,), dtype),
            TARGETS: VectorPlaces(np.stack(addresses[1:], axis=1), (len(names) - 1, width), dtype),
        },
        memory=vectors,
        spans=spans_of(list(vectors.values())),
    )


def _columns(
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


def _from_own_split(shard: ShardFile, group: int, view: WantedLayer) -> pa.Table:
    table = _columns(shard, group, None, use_threads=True)
    targets = arrow_to_targets(table[TARGETS])
    if targets.shape[1] > view.n_targets:
        column = targets_to_arrow(targets[:, : view.n_targets])
        table = table.set_column(
            table.schema.get_field_index(TARGETS), table.field(TARGETS), column
        )
    return table
