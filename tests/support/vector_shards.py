"""Shards of drawn bits, written as `build` writes them."""

import numpy as np
import pyarrow as pa

from builder.shards.writer import open_shard
from llava_amber_activations.formats.arrow_vectors import vectors_to_arrow
from llava_amber_activations.formats.schema import all_layers_schema

NAMES = ("x_00", "mlp_out_00", "mlp_out_01")


def drawn(rows, width, dtype, seed=0):
    """Any bit patterns: infinities, NaNs with payloads, subnormals, negative zeros."""
    bits = np.random.default_rng(seed).integers(0, 256, (rows, width, np.dtype(dtype).itemsize))
    return bits.astype(np.uint8).reshape(rows, -1).view(dtype)


def write_shard(path, groups, width, dtype):
    """Write a shard as `build` does; returns the vectors of each row group by their names."""
    schema = all_layers_schema(NAMES, width, dtype, 2)
    written = []
    with open_shard(path, schema) as shard:
        for seed, rows in enumerate(groups):
            vectors = [drawn(rows, width, dtype, 10 * seed + n) for n in range(len(NAMES))]
            leading = [
                pa.array(["a"] * rows)
                if field.type == pa.string()
                else pa.array([0] * rows, "int32")
                for field in schema
                if not pa.types.is_fixed_size_list(field.type)
            ]
            shard.write_group([*leading, *map(vectors_to_arrow, vectors)])
            written.append(dict(zip(NAMES, vectors, strict=True)))
    return written


def bits(vectors):
    return np.ascontiguousarray(vectors).view(f"u{vectors.dtype.itemsize}")
