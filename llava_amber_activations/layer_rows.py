"""Rows of one layer, read from `all_layers` shards or from the layer's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.folder import ALL_LAYERS, ALL_LAYERS_SPLIT, DEFAULT_CONFIG
from llava_amber_activations.footers import expected_of, expected_rows
from llava_amber_activations.gather import (
    RowPlaces,
    VectorPlaces,
    places_in_array,
    places_in_table,
    spans_of,
)
from llava_amber_activations.layers import LayerWindow, mlp_out_name, split_name, x_name
from llava_amber_activations.memory import RecycledMemory
from llava_amber_activations.read_ahead import Shards, read_in_order
from llava_amber_activations.schema import (
    INTEGERS,
    LEADING,
    TARGETS,
    Vectors,
    X,
    arrow_to_targets,
    arrow_to_vectors,
    default_schema,
    float_name,
    layers_of,
    targets_to_arrow,
    vectors_to_arrow,
    width_of,
)
from llava_amber_activations.source import ShardFile, Source
from llava_amber_activations.vector_pages import read_vectors


@dataclass(frozen=True)
class LayerView:
    """One layer with its targets, as a reader wants them.

    Attributes:
        layer: whose `x` is read.
        n_targets: the most targets wanted.
        first_target: distance from the layer to its first target, 0 or 1.
    """

    layer: int
    n_targets: int
    first_target: int = 1

    def targets(self, n_layers: int) -> range:
        """Return the layers whose MLP outputs are wanted, of a model with `n_layers`."""
        return LayerWindow(n_layers, self.n_targets, self.first_target).targets(self.layer)


def view_of(
    source: Source, layer: int, n_targets: int | None = None, first_target: int = 1
) -> LayerView:
    """Return a layer with its targets, as many as the source was made with where it is None.

    Raises:
        ActivationsError: the layer has no targets.
    """
    manifest = source.manifest
    wanted = manifest.n_targets if n_targets is None else n_targets
    view = LayerView(layer, wanted, first_target)
    view.targets(manifest.recipe.n_layers)
    return view


def layer_shards(source: Source, view: LayerView) -> list[str]:
    """Return the shards to read a layer from: `all_layers` where it exists, else the layer's own.

    Raises:
        ActivationsError: neither is there, or the layer's own does not hold those targets.
    """
    manifest = source.manifest
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if shards:
        return shards
    shards = manifest.shards(DEFAULT_CONFIG, split_name(view.layer))
    if not shards:
        have = ", ".join(manifest.splits(DEFAULT_CONFIG)) or "none"
        raise ActivationsError(
            f"{source.name} has no layer {view.layer}: the layers it has are {have}"
        )
    if view.first_target == 0:
        raise ActivationsError(
            f"{source.name} has no {ALL_LAYERS} config, and a layer's own split holds the targets "
            "from the next layer on: first_target=0 cannot be had"
        )
    if view.n_targets > manifest.n_targets:
        raise ActivationsError(
            f"{source.name} has no {ALL_LAYERS} config, and a layer's own split holds "
            f"{manifest.n_targets} targets: {view.n_targets} cannot be had"
        )
    return shards


def _shards_of(source: Source, paths: Sequence[str]) -> Shards:
    return Shards([source.url(path) for path in paths], expected_of(source, paths))


def check_view(source: Source, view: LayerView) -> None:
    """Check that a layer and its targets can be had, by the first shard's footer.

    Raises:
        ActivationsError: they cannot.
    """
    path = layer_shards(source, view)[0]
    footer = _shards_of(source, [path]).footer(source.url(path))
    check_columns(footer.schema.to_arrow_schema(), view, source.url(path))


def check_columns(schema: pa.Schema, view: LayerView, where: object) -> list[str]:
    """Return the names of a layer's `x` and targets in an all_layers shard of this schema.

    The names are none where the shard is of the layer's own split.

    Raises:
        ActivationsError: the shard does not hold the layer or one of its targets.
    """
    present = set(schema.names)
    if X in present:
        _check_types(schema, [X, TARGETS], where)
        return []
    targets = view.targets(layers_of(schema, where))
    names = [x_name(view.layer), *map(mlp_out_name, targets)]
    missing = [name for name in names if name not in present]
    if missing:
        raise ActivationsError(
            f"this data does not hold {missing[0]}: it was imported without it ({where})"
        )
    _check_types(schema, names, where)
    return names


def _check_types(schema: pa.Schema, names: Sequence[str], where: object) -> None:
    """Check that columns are vectors, targets lists of them, beside every column of a row."""
    present = set(schema.names)
    for name in names:
        type_ = schema.field(name).type if name in present else pa.null()
        if name == TARGETS and pa.types.is_list(type_):
            type_ = type_.value_type
        if not pa.types.is_fixed_size_list(type_):
            raise ActivationsError(
                f"{where} is damaged (no vectors in {name}): build or download the dataset again"
            )
    missing = [name for name in LEADING if name not in present]
    if missing:
        raise ActivationsError(
            f"{where} is damaged (no column {missing[0]}): build or download the dataset again"
        )


def layer_tables(source: Source, view: LayerView) -> Iterator[pa.Table]:
    """Yield a layer's rows, a row group at a time, with the columns of the default config."""
    yield from tables_of_layer(source, layer_shards(source, view), view)


def tables_of_layer(source: Source, paths: list[str], view: LayerView) -> Iterator[pa.Table]:
    """Yield a layer's rows as `layer_tables` does, from shards that the caller has chosen."""
    shards = _shards_of(source, paths)
    yield from read_in_order(
        shards, shards.row_groups(), lambda shard, number: read_layer(shard, number, view)
    )


def layer_ranges(
    source: Source,
    paths: list[str],
    view: LayerView,
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
    shard: ShardFile, group: int, view: LayerView, memory: RecycledMemory
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


def layer_schema(schema: pa.Schema, view: LayerView, where: object) -> pa.Schema:
    """Return the schema of `read_layer`'s tables for a shard of `schema`."""
    return default_schema(width_of(schema), float_name(schema), layers_of(schema, where))


def read_layer(shard: ShardFile, group: int, view: LayerView) -> pa.Table:
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
    shard: ShardFile, group: int, view: LayerView, memory: RecycledMemory
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


def _from_own_split(shard: ShardFile, group: int, view: LayerView) -> pa.Table:
    table = _columns(shard, group, None, use_threads=True)
    targets = arrow_to_targets(table[TARGETS])
    if targets.shape[1] > view.n_targets:
        column = targets_to_arrow(targets[:, : view.n_targets])
        table = table.set_column(
            table.schema.get_field_index(TARGETS), table.field(TARGETS), column
        )
    return table
