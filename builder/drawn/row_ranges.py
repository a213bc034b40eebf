"""Rows of a dataset, wherever they are among its shards, as arrays: which they are, their vectors.

A dataset without `all_layers` is read by its layers' own splits: `x` is in each, and the MLP
outputs are among the targets of as few splits as hold them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from builder.drawn.choosing import shard_rows
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    arrow_to_targets,
    arrow_to_vectors,
    numbers_in,
)
from llava_amber_activations.formats.columns import (
    FLOATS,
    IMAGE,
    KIND,
    SOURCE,
    TARGETS,
    X,
    kind_codes,
    row_columns,
)
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    DEFAULT_CONFIG,
)
from llava_amber_activations.formats.layers import LayerWindow, mlp_out_name, split_name, x_name
from llava_amber_activations.reading.layer_rows import read_columns
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.reading.wanted_layer import check_types
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import Source, expected_of

Columns = Mapping[str, npt.NDArray[Any]]

# Of those that are no int32.
_OF_COLUMN = {**dict.fromkeys((IMAGE, SOURCE), object), **dict.fromkeys(FLOATS, np.float32)}


@dataclass(frozen=True)
class SplitColumns:
    """What is read of the shards of one split.

    Attributes:
        paths: of its shards, in order.
        vectors: columns, by what they are called: `x_05` is `x` of a layer's own split.
        targets: what the targets of a row are called, in order; those without a name are not
            wanted. None at all: the column is not read.
    """

    paths: Sequence[str]
    vectors: Mapping[str, str]
    targets: Sequence[str | None] = field(default=())


def guide_shards(source: Source) -> list[str]:
    """Return shards that hold every row once; none where the dataset has no vectors of layers."""
    manifest = source.manifest
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    layers = manifest.layers(DEFAULT_CONFIG)
    return shards or (manifest.shards(DEFAULT_CONFIG, split_name(layers[0])) if layers else [])


def names_there(source: Source) -> set[str]:
    """Return the names of the vectors that a dataset holds: `x_05`, `mlp_out_06`.

    Raises:
        ActivationsError: a shard is missing or damaged.
    """
    manifest = source.manifest
    n_layers = manifest.recipe.n_layers
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if shards:
        every = {name_of(n) for name_of in (x_name, mlp_out_name) for n in range(n_layers)}
        footer = Shards([], expected_of(source, shards)).footer(source.url(shards[0]))
        return every & set(footer.schema.to_arrow_schema().names)
    layers = manifest.layers(DEFAULT_CONFIG)
    window = LayerWindow(n_layers, manifest.n_targets)
    return {
        *map(x_name, layers),
        *(mlp_out_name(target) for layer in layers for target in window.targets(layer)),
    }


def read_leading(source: Source, rows: Sequence[range]) -> dict[str, npt.NDArray[Any]]:
    """Read what says which rows they are, and what more is said of them: [rows] each.

    `kind` is its code, `image` and `source` are texts, `logprob` is float32, and all else int32.

    Args:
        rows: ranges of rows, counted over all shards; they ascend and do not overlap.

    Raises:
        ActivationsError: a shard is missing or damaged.
    """

    names = row_columns(source.manifest.recipe.extra_columns)
    dtypes = {name: np.dtype(_OF_COLUMN.get(name, np.int32)) for name in names}

    def values(name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        if name == KIND:
            return kind_codes(column.to_pylist())
        if dtypes[name].kind == "O":
            return np.array(column.to_pylist(), dtype=object)
        return numbers_in(column)

    def read(shard: ShardFile, group: int) -> Columns:
        check_types(shard.schema, [], shard.url)
        table = read_columns(shard, group, names)
        return {name: values(name, table[name]) for name in names}

    shapes = {name: ((), dtype) for name, dtype in dtypes.items()}
    return _read(source, guide_shards(source), rows, read, shapes)


def read_row_vectors(
    source: Source, names: Sequence[str], rows: Sequence[range]
) -> dict[str, Vectors]:
    """Read vectors of some rows: [rows, H] each, by their names.

    Args:
        names: of vectors that are there.
        rows: as in `read_leading`.

    Raises:
        ActivationsError: a shard is missing or damaged.
    """
    manifest = source.manifest
    form = ((manifest.recipe.hidden_size,), np.dtype(manifest.dtype))
    found: dict[str, Vectors] = {}
    for split in _splits_of(source, names):
        there = [*split.vectors, *(name for name in split.targets if name)]
        found |= _read(
            source,
            split.paths,
            rows,
            lambda shard, group, split=split: _read_vectors(shard, group, split),
            dict.fromkeys(there, form),
        )
    return {name: found[name] for name in names}


def _splits_of(source: Source, names: Sequence[str]) -> Iterator[SplitColumns]:
    """Yield where vectors are read: in `all_layers`, or else in few of the layers' own splits."""
    manifest = source.manifest
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if shards:
        yield SplitColumns(shards, {name: name for name in names})
        return
    window = LayerWindow(manifest.recipe.n_layers, manifest.n_targets)
    layers = manifest.layers(DEFAULT_CONFIG)
    wanted = set(names)
    of_split: dict[int, list[str | None]] = {layer: [] for layer in layers}
    outs = [n for n in range(window.n_layers) if mlp_out_name(n) in wanted]
    while outs:
        # Of those splits that hold the first, the last one holds the most of those after it.
        layer = max(n for n in layers if outs[0] in window.targets(n))
        targets = window.targets(layer)
        of_split[layer] = [mlp_out_name(n) if n in outs else None for n in targets]
        outs = [n for n in outs if n not in targets]
    for layer, called in of_split.items():
        vectors = {x_name(layer): X} if x_name(layer) in wanted else {}
        if vectors or called:
            yield SplitColumns(manifest.shards(DEFAULT_CONFIG, split_name(layer)), vectors, called)


def _read_vectors(shard: ShardFile, group: int, split: SplitColumns) -> Columns:
    columns = list(split.vectors.values())
    check_types(shard.schema, [*columns, *([TARGETS] if split.targets else [])], shard.url)
    found: dict[str, npt.NDArray[Any]] = {}
    if columns:
        vectors = read_vectors(shard, group, columns)
        if vectors is None:
            table = read_columns(shard, group, columns, use_threads=True)
            vectors = {name: arrow_to_vectors(table[name]) for name in columns}
        found |= {name: vectors[column] for name, column in split.vectors.items()}
    if split.targets:
        targets = arrow_to_targets(read_columns(shard, group, [TARGETS], use_threads=True)[TARGETS])
        named = zip(split.targets, targets.swapaxes(0, 1), strict=True)
        found |= {name: vectors for name, vectors in named if name}
    return found


def _read(
    source: Source,
    paths: Sequence[str],
    rows: Sequence[range],
    read: Any,
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
) -> dict[str, npt.NDArray[Any]]:
    """Read columns of some rows from the row groups that hold them, and from no other shards."""
    n_rows = sum(map(len, rows))
    found = {name: np.empty((n_rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    shards = Shards([source.url(path) for path in paths], expected_of(source, paths), most_open=1)
    groups: list[RowGroup] = []
    # Of each: which of its rows are wanted, and where they go.
    cuts: list[list[tuple[slice, int]]] = []
    for path, place in zip(paths, shard_rows(source, paths), strict=True):
        if not any(_overlap(place, each) for each in rows):
            continue
        url, start = source.url(path), place.start
        for number in range(len(shards.group_rows(url))):
            group = shards.row_group(url, number)
            of_group = _cuts(range(start, start + group.n_rows), rows)
            if of_group:
                groups.append(group)
                cuts.append(of_group)
            start += group.n_rows
    for of_group, columns in zip(cuts, read_in_order(shards, groups, read), strict=True):
        for taken, at in of_group:
            for name, values in found.items():
                values[at : at + taken.stop - taken.start] = columns[name][taken]
    return found


def _cuts(group: range, rows: Sequence[range]) -> list[tuple[slice, int]]:
    found = []
    at = 0
    for each in rows:
        both = _overlap(group, each)
        if both:
            taken = slice(both.start - group.start, both.stop - group.start)
            found.append((taken, at + both.start - each.start))
        at += len(each)
    return found


def _overlap(first: range, second: range) -> range:
    return range(max(first.start, second.start), min(first.stop, second.stop))
