"""What a dataset says of each of its samples, out of the columns of their rows."""

from __future__ import annotations

import pyarrow as pa

from llava_amber_activations.formats.arrow_vectors import numbers_in
from llava_amber_activations.formats.columns import ID, IMAGE, SAMPLE
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    DEFAULT_CONFIG,
    Manifest,
)
from llava_amber_activations.formats.layers import split_name
from llava_amber_activations.reading.layer_rows import split_tables
from llava_amber_activations.sources.source import Source

N_ROWS = "n_rows"


def read_samples_table(source: Source) -> pa.Table:
    """Return one row for each sample that has rows, in their order.

    Returns:
        `sample` int32, `id` int32, `image` string, `n_rows` int32: how many rows a layer has of it.

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
    columns = list(zip(*rows, strict=True)) or [()] * 4
    types = {SAMPLE: pa.int32(), ID: pa.int32(), IMAGE: pa.string(), N_ROWS: pa.int32()}
    return pa.table(dict(zip(types, columns, strict=True)), schema=pa.schema(types))


def _shards(manifest: Manifest) -> list[str]:
    """Return shards that name every row: those of all layers, or of any one."""
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    layers = manifest.layers(DEFAULT_CONFIG)
    return shards or (manifest.shards(DEFAULT_CONFIG, split_name(layers[0])) if layers else [])
