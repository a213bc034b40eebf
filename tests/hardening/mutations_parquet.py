"""Damage to Parquet: where footers and pages lie, and shards that are whole but of another kind.

Format: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mutations_json import expanded

_OURS = b"llava_amber_activations"
_PAGE_HEADER_BYTES = 40


def footer_region(content: bytes, rng: random.Random) -> range:
    """Return the footer, or the last eight bytes: its length and the format's name."""
    size = int.from_bytes(content[-8:-4], "little")
    footer = range(len(content) - 8 - size, len(content) - 8)
    return rng.choice((footer, footer, footer, range(len(content) - 8, len(content))))


def page_region(content: bytes, rng: random.Random) -> range:
    """Return the bytes of a column chunk's first page: its header, or all of it."""
    metadata = pq.read_metadata(io.BytesIO(content))
    group = metadata.row_group(rng.randrange(metadata.num_row_groups))
    column = group.column(rng.randrange(group.num_columns))
    start = column.dictionary_page_offset or column.data_page_offset
    size = column.total_compressed_size
    return range(start, start + rng.choice((min(_PAGE_HEADER_BYTES, size), size)))


def _with(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, array)


def _vector_column(table: pa.Table) -> str:
    return next(name for name in ("x", "x_01", "features") if name in table.schema.names)


def _numbers(table: pa.Table) -> np.ndarray:
    column = table[_vector_column(table)].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1).copy()


def _vectors(values: np.ndarray, nullable: bool = False) -> pa.Array:
    flat = pa.array(values.reshape(-1))
    field = pa.field("element", flat.type, nullable=nullable)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(field, values.shape[1]))


def _all_narrow(table: pa.Table) -> pa.Table:
    """Every vector half as wide: whole by itself, another width than the manifest says."""
    for field in table.schema:
        if pa.types.is_fixed_size_list(field.type):
            values = table[field.name].combine_chunks().flatten().to_numpy()
            values = values.reshape(len(table), -1)[:, : field.type.list_size // 2]
            table = _with(table, field.name, _vectors(np.ascontiguousarray(values)))
    return table


def _all_cast(dtype: str) -> Callable[[pa.Table], pa.Table]:
    def cast(table: pa.Table) -> pa.Table:
        for field in table.schema:
            if pa.types.is_fixed_size_list(field.type):
                values = table[field.name].combine_chunks().flatten().to_numpy()
                values = values.reshape(len(table), -1).astype(dtype)
                table = _with(table, field.name, _vectors(values))
        return table

    return cast


def _ragged(table: pa.Table) -> pa.Table:
    if "targets" not in table.schema.names:
        return table.drop_columns(["mlp_out_02"])
    lists = table["targets"].to_pylist()
    lists[-1] = lists[-1][:-1]
    return _with(table, "targets", pa.array(lists, table.schema.field("targets").type))


def _with_null(name: str | None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        column = name or _vector_column(table)
        values = table[column].to_pylist()
        values[len(values) // 2] = None
        return _with(table, column, pa.array(values, table.schema.field(column).type))

    return change


def _null_inside(table: pa.Table) -> pa.Table:
    values = _numbers(table)
    lists = values.tolist()
    lists[0][0] = None
    type_ = pa.list_(pa.field("element", pa.from_numpy_dtype(values.dtype)), values.shape[1])
    return _with(table, _vector_column(table), pa.array(lists, type_))


def _one_vector(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return _with(table, _vector_column(table), _vectors(make(_numbers(table))))

    return change


def _as(type_: pa.DataType, name: str = "sample") -> Callable[[pa.Table], pa.Table]:
    return lambda table: _with(table, name, table[name].cast(type_))


def _variable(table: pa.Table) -> pa.Table:
    lists = _numbers(table).tolist()
    return _with(table, _vector_column(table), pa.array(lists, pa.list_(pa.float32())))


def _filled(name: str, number: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: _with(table, name, pa.array([number] * len(table), pa.int32()))


REWRITES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "narrow": _all_narrow,
    "float16": _all_cast("float16"),
    "float64": _all_cast("float64"),
    "int32 vectors": _all_cast("int32"),
    "one narrow": _one_vector(lambda x: x[:, :-1].copy()),
    "one wide": _one_vector(lambda x: np.hstack([x, x])),
    "one float64": _one_vector(lambda x: x.astype("float64")),
    "one nan": _one_vector(lambda x: np.where(x == x.max(), np.nan, x).astype(x.dtype)),
    "null row": _with_null(None),
    "null element": _null_inside,
    "null sample": _with_null("sample"),
    "null image": _with_null("image"),
    "ragged": _ragged,
    "variable lists": _variable,
    "no sample": lambda table: table.drop_columns(["sample"]),
    "no token_id": lambda table: table.drop_columns(["token_id"]),
    "no vectors": lambda table: table.select(["sample"]),
    "uint8 sample": _as(pa.uint8()),
    "int64 sample": _as(pa.int64()),
    "text sample": _as(pa.string()),
    "large position": _as(pa.int64(), "position"),
    "dictionary image": lambda table: _with(table, "image", table["image"].dictionary_encode()),
    "negative sample": _filled("sample", -1),
    "huge sample": _filled("sample", 2**31 - 1),
    "huge token": _filled("token_id", 2**31 - 1),
    "reversed": lambda table: table.take(list(range(len(table)))[::-1]),
    "no rows": lambda table: table.slice(0, 0),
    "fewer rows": lambda table: table.slice(0, len(table) - 1),
    "twice": lambda table: pa.concat_tables([table, table]),
    "columns reversed": lambda table: table.select(table.schema.names[::-1]),
    "column twice": lambda table: table.append_column("x_extra", table[_vector_column(table)]),
    "renamed": lambda table: table.rename_columns(
        [name.replace("1", "9").replace("x", "y") for name in table.schema.names]
    ),
    "no metadata": lambda table: table.replace_schema_metadata(None),
}
_METADATA = (
    *("", "null", "[]", "{}", "7", "{", '{"format_version": "2.0", "n_layers": 4}'),
    *('{"format_version": 1, "n_layers": 4}', '{"format_version": "1.1"}'),
    *('{"format_version": "1.1", "n_layers": "four"}', '{"format_version": "1.1", "n_layers": -1}'),
    *('{"format_version": "1.1", "n_layers": 99999999999}', "@deep 100000"),
    *(
        '{"format_version": "1.1", "n_layers": null}',
        '{"format_version": "1.1", "n_layers": 1e400}',
    ),
)


def _rewrite(content: bytes, how: str, groups: int) -> bytes:
    table = pq.ParquetFile(io.BytesIO(content)).read()
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key == _OURS}
    changed = REWRITES[how](table.combine_chunks())
    if how != "no metadata":
        changed = changed.replace_schema_metadata(metadata)
    return _written(changed, groups)


def _written(table: pa.Table, groups: int) -> bytes:
    out = io.BytesIO()
    vectors = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    # As the project writes them, where that can be.
    split = [
        f"{name}.list.element"
        for name in vectors
        if pa.types.is_floating(table.schema.field(name).type.value_type)
    ]
    pq.write_table(
        table,
        out,
        row_group_size=groups,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=split or False,
        write_statistics=False,
    )
    return out.getvalue()


def _schema_metadata(content: bytes, text: str) -> bytes:
    table = pq.ParquetFile(io.BytesIO(content)).read()
    return _written(table.replace_schema_metadata({_OURS: expanded(text).encode()}), 64)


def _draw_metadata(content: bytes, rng: random.Random) -> dict[str, Any]:
    schema = pq.read_schema(io.BytesIO(content))
    ours = json.loads(schema.metadata[_OURS])
    near = json.dumps({**ours, "n_layers": ours["n_layers"] + rng.choice((-2, -1, 1, 50))})
    return {"text": rng.choice((*_METADATA, near, near, near))}


def _draw_rewrite(content: bytes, rng: random.Random) -> dict[str, Any]:
    """Draw a rewrite that this shard has the columns for."""
    table = pq.ParquetFile(io.BytesIO(content)).read()
    while True:
        how = rng.choice(list(REWRITES))
        try:
            REWRITES[how](table)
        except (KeyError, StopIteration, pa.ArrowException):
            continue
        return {"how": how, "groups": rng.choice((3, 64))}


OPERATIONS = {
    "rewrite": (_draw_rewrite, _rewrite),
    "schema_metadata": (_draw_metadata, _schema_metadata),
}
