"""What stands before the values of a Parquet page: its header, and the levels of its lists.

Formats: Thrift's thrift-compact-protocol.md (headers); parquet-format's Encodings.md, "Run Length
Encoding / Bit-Packing Hybrid" (levels).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt


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
        levels.append(bytes(page[at + 4 : at + 4 + size]))
        at += 4 + size
    _check_repetition(levels[0], before % width, n_values, width)
    _check_definition(levels[1], n_values)
    return page[at:]


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


def read_struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Read a Thrift struct of integers, flags and structs; return its fields and what follows.

    Raises:
        ValueError, LookupError: it is none.
    """
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
        elif kind in (4, 5, 6):  # i16, i32, i64
            fields[field], at = _read_integer(data, at)
        elif kind == 12:
            fields[field], at = read_struct(data, at)
        else:
            raise ValueError("a type that no page header of this form has")
    return fields, at + 1


def _read_integer(data: memoryview, at: int) -> tuple[int, int]:
    """Read a zigzag varint; return it and what follows."""
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
