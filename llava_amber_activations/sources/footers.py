"""What a shard's footer claims, held against its manifest before anything is read by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import reason_of
from llava_amber_activations.formats.arrow_vectors import FLOAT_NAMES
from llava_amber_activations.formats.columns import FLOATS, INTEGERS
from llava_amber_activations.formats.dataset_folder import REMEDY

# This project writes row groups of at most 64 MiB. What claims so much more is no row group of
# vectors, and memory for it is not asked for.
_MOST_ROW_GROUP_BYTES = 2**30


@dataclass(frozen=True)
class Expected:
    """What a manifest says of some shards.

    Attributes:
        width: of every vector; None where it does not say.
        dtype: of every vector, `float16` or `float32`; None where it does not say.
        rows: of each shard, by its address.
        row_groups: of each shard that it says them of, the rows of each row group.
    """

    width: int | None = None
    dtype: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    row_groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


NOTHING_EXPECTED = Expected()


def rows_of_groups(footer: pq.FileMetaData) -> tuple[int, ...]:
    """Return the rows of each row group, as a footer has them."""
    return tuple(footer.row_group(number).num_rows for number in range(footer.num_row_groups))


def check_footer(url: str, footer: pq.FileMetaData, expected: Expected) -> None:
    """Check a footer's schema and counts against what the manifest says of the shard.

    Raises:
        ActivationsError: they differ, or no row group can be so large.
    """
    schema = footer.schema.to_arrow_schema()
    _check_row_columns(url, schema)
    row_bytes = _check_vectors(url, schema, expected)
    counts = rows_of_groups(footer)
    if sum(counts) != footer.num_rows or min(counts, default=0) < 0:
        raise ActivationsError(
            f"{url} is damaged (its row groups do not add up to its {footer.num_rows} rows): "
            f"{REMEDY}"
        )
    rows = expected.rows.get(url)
    if rows is not None and footer.num_rows != rows:
        raise ActivationsError(
            f"{url} has {footer.num_rows} rows, and the dataset's manifest says {rows}: {REMEDY}"
        )
    row_groups = expected.row_groups.get(url)
    if row_groups is not None and counts != row_groups:
        raise ActivationsError(
            f"{url} has other row groups than the dataset's manifest says "
            f"({difference(counts, row_groups)}): {REMEDY}"
        )
    if max(counts, default=0) * row_bytes > _MOST_ROW_GROUP_BYTES:
        raise ActivationsError(
            f"{url} is damaged (a row group claims {max(counts)} rows of {row_bytes} bytes, more "
            f"than this project writes): {REMEDY}"
        )


def difference(counts: Sequence[int], said: Sequence[int]) -> str:
    """Say where the row groups of a shard differ first from those that a manifest names."""
    if len(counts) != len(said):
        return f"{len(counts)}, not {len(said)}"
    number = next(n for n, pair in enumerate(zip(counts, said, strict=True)) if pair[0] != pair[1])
    return f"row group {number} has {counts[number]} rows, not {said[number]}"


def _check_row_columns(url: str, schema: pa.Schema) -> None:
    """Check that the columns that say which row a row is are numbers where they should be."""
    wanted = {**dict.fromkeys(INTEGERS, "int32"), **dict.fromkeys(FLOATS, "float32")}
    for name, dtype in wanted.items():
        index = schema.get_field_index(name)
        type_ = pa.null() if index < 0 else schema.field(index).type
        is_right = pa.types.is_integer if name in INTEGERS else pa.types.is_float32
        if index >= 0 and not is_right(type_):
            raise ActivationsError(
                f"{url} holds {type_} in {name}, which is to be {dtype}: {REMEDY}"
            )


def _check_vectors(url: str, schema: pa.Schema, expected: Expected) -> int:
    """Check the type of every vector; return the bytes of one row of them, a list's as one."""
    row_bytes = 0
    for column in schema:
        type_ = column.type
        if pa.types.is_list(type_):
            type_ = type_.value_type
        if not pa.types.is_fixed_size_list(type_):
            continue
        dtype = FLOAT_NAMES.get(type_.value_type)
        if dtype is None:
            raise ActivationsError(
                f"{url} holds {type_.value_type} in {column.name}, and vectors are float16 or "
                f"float32: {REMEDY}"
            )
        wanted = (expected.width or type_.list_size, expected.dtype or dtype)
        if (type_.list_size, dtype) != wanted:
            raise ActivationsError(
                f"{url} has vectors of {type_.list_size} {dtype} in {column.name}, and the "
                f"dataset's manifest says {wanted[0]} {wanted[1]}: {REMEDY}"
            )
        row_bytes += type_.list_size * np.dtype(dtype).itemsize
    return row_bytes


@contextmanager
def reading_errors(url: str, group: int | None = None) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file inside the block into one sentence.

    Args:
        url: of the file.
        group: which row group is read; None where it is the footer.

    Raises:
        ActivationsError: in the place of pyarrow's exceptions.
    """
    where = url if group is None else f"row group {group} of {url}"
    try:
        yield
    except FileNotFoundError:
        raise ActivationsError(f"{url} is missing: {REMEDY}") from None
    except MemoryError as error:
        raise ActivationsError(
            f"{where} cannot be read ({reason_of(error)}): it is damaged, or this machine has "
            "too little memory"
        ) from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # What the Hub or the connection says is an OSError of a kind of its own.
        if isinstance(error, OSError) and type(error) is not OSError:
            if "://" in url:
                raise
            raise ActivationsError(f"{url} cannot be read: {error}") from None
        raise ActivationsError(f"{where} is damaged ({reason_of(error)}): {REMEDY}") from None
