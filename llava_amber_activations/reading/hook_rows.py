"""Rows of several layers at once, read from `all_layers` shards."""

from __future__ import annotations

import numpy as np
import torch

from llava_amber_activations.formats.arrow_vectors import arrow_to_vectors, float_name, width_of
from llava_amber_activations.reading.layer_rows import read_columns, read_row_numbers
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.reading.wanted_hooks import WantedHooks, check_hook_columns
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.vectors.held_rows import HeldRows, rows_of_block
from llava_amber_activations.vectors.norms import apply_norm
from llava_amber_activations.vectors.recycled import RecycledMemory


def read_hook_rows(
    shard: ShardFile, group: int, wanted: WantedHooks, memory: RecycledMemory, *, leading: bool
) -> HeldRows:
    """Read one row group's vectors of several layers, each column once.

    Args:
        leading: read what says which rows they are, too.

    Raises:
        ActivationsError: the shard does not hold a vector that is wanted, or its dtype cannot hold
            one that is computed.
    """
    schema = shard.schema
    check_hook_columns(schema, wanted, shard.url)
    columns, vectors = wanted.columns, wanted.vectors
    n_rows, width = shard.parquet.metadata.row_group(group).num_rows, width_of(schema)
    block = memory.empty((n_rows, len(vectors), width), np.dtype(float_name(schema)))
    # A column is decoded to where one of its vectors lies, and there others find it.
    homes = wanted.homes
    out = [block[:, homes[column]] for column in columns]
    if read_vectors(shard, group, columns, out=out) is None:
        table = read_columns(shard, group, columns, use_threads=True)
        for name, into in zip(columns, out, strict=True):
            into[...] = arrow_to_vectors(table[name])
    tensor = torch.from_numpy(block)
    for number, vector in enumerate(vectors):
        if vector.norm is not None:
            apply_norm(tensor[:, homes[vector.column]], vector.norm, out=tensor[:, number])
    numbers = read_row_numbers(shard, group) if leading else {}
    return rows_of_block(numbers, block, {vector.name: (width,) for vector in vectors})
