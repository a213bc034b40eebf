"""What stands before the values of a Parquet page: its header, and the levels of its lists.

Formats: Thrift's thrift-compact-protocol.md (headers); parquet-format's Encodings.md, "Run Length
Encoding / Bit-Packing Hybrid" (levels).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

# Of Thrift's i16, i32 and i64, by the numbers of their types.
_INTEGER_BITS = {4: 16, 5: 32, 6: 64}
# Seven bits each, for 64.
_MOST_VARINT_BYTES = 10
# A data page's header holds a struct, whose statistics are one more.
_MOST_NESTED = 3


def without_levels(page: memoryview, n_values: int, before: int, width: int) -> memoryview:
    """Return a page's values, having checked that nothing is missing among lists of one length.

    Args:
        page: decompressed.
        before: values of the column in the pages before.
        width: of every list.

    Raises:
        ValueError, LookupError: it is not so.
    """
    levels = []
    at = 0
    for _ in range(2):
        size = int.from_bytes(page[at : at + 4], "little")
        if size > most_level_bytes(n_values):
            raise ValueError("levels of more bytes than there are values")
        levels.append(bytes(page[at + 4 : at + 4 + size]))
        at += 4 + size
    _check_repetition(levels[0], before % width, n_values, width)
    _check_definition(levels[1], n_values)
    return page[at:]


def most_level_bytes(n_values: int) -> int:
    """Return how many bytes the levels of a page may take: each of one bit, in runs at worst."""
    return n_values + 2 * _MOST_VARINT_BYTES


# The same for every column of a row group.
@lru_cache(maxsize=256)
def _check_repetition(levels: bytes, phase: int, n_values: int, width: int) -> None:
    """Check that the level is 0 where a list of `width` begins, and 1 elsewhere."""
    expected = (np.arange(phase, phase + n_values) % width != 0).astype(np.uint8)
    if not np.array_equal(_read_levels(levels, n_values), expected):
        raise ValueError("lists that begin elsewhere")


@lru_cache(maxsize=256)
def _check_definition(levels: bytes, n_values: int) -> None:
    """Check that the level is 1 everywhere: nothing is missing."""
    if not _read_levels(levels, n_values).all():
        raise ValueError("elements are missing")


def _read_levels(data: bytes, n_values: int) -> npt.NDArray[np.uint8]:
    """Decode levels of one bit each, in runs and in groups of eight."""
    parts = []
    n_read = at = 0
    while n_read < n_values:
        header, at = _read_varint(data, at)
        count = header >> 1
        if header & 1:
            packed = np.frombuffer(data, np.uint8, count, at)
            parts.append(np.unpackbits(packed, bitorder="little"))
            at += count
        else:
            parts.append(np.full(min(count, n_values - n_read), data[at], np.uint8))
            at += 1
        if not len(parts[-1]):
            raise ValueError("an empty run")
        n_read += len(parts[-1])
    # The last group of eight is filled up.
    return np.concatenate(parts)[:n_values]


def read_struct(data: memoryview, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a Thrift struct of integers, flags and structs; return its fields and what follows.

    Args:
        depth: of structs that this one stands in.

    Raises:
        ValueError, LookupError: it is none, or no page header nests so deep.
    """
    if depth > _MOST_NESTED:
        raise ValueError("structs nested deeper than a page header's")
    fields: dict[int, Any] = {}
    field = 0
    while (byte := data[at]) != 0:
        at += 1
        kind, delta = byte & 0x0F, byte >> 4
        if not delta:
            raise ValueError("a field number that is written out")
        field += delta
        if kind in (1, 2):  # true, false
            fields[field] = kind == 1
        elif kind in _INTEGER_BITS:
            fields[field], at = _read_integer(data, at, _INTEGER_BITS[kind])
        elif kind == 12:
            fields[field], at = read_struct(data, at, depth + 1)
        else:
            raise ValueError("a type that no page header of this form has")
    return fields, at + 1


def _read_integer(data: memoryview, at: int, bits: int) -> tuple[int, int]:
    """Read a zigzag varint; return it and what follows."""
    value, at = _read_varint(data, at)
    if value >> bits:
        raise ValueError("an integer larger than its type")
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    value = 0
    for number in range(_MOST_VARINT_BYTES):
        byte = data[at + number]
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, at + number + 1
    raise ValueError("a varint longer than any integer")
