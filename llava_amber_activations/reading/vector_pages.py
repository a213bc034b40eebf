"""Vectors decoded straight from the pages of a shard, several times as fast as pyarrow does.

Parquet stores a list's elements with two levels each, which say where lists begin and what is
missing. Of a fixed-size list without nulls nothing is said by them, and telling 4096 levels a row
apart is most of what a general reader does. What is left of a page is zstd over byte streams:

    page    header (Thrift, compact protocol); then, compressed, repetition levels, definition
            levels (each: int32 length, bytes) and the values
    values  the first bytes of all floats, then the second bytes of all, …

Only columns that a shard of this project has in this form are read here: byte-stream-split, zstd,
data pages of version 1, the levels those of lists of one length. Of anything else `read_vectors`
returns nothing, and pyarrow reads it, or says what is wrong with it.

Formats: parquet-format's README (data pages), parquet.thrift (the numbers of fields, types and
encodings) and Encodings.md (BYTE_STREAM_SPLIT).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import FLOAT_TYPES, Vectors
from llava_amber_activations.reading.page_headers import (
    most_level_bytes,
    read_struct,
    without_levels,
)
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.vectors.recycled import RecycledMemory

_DATA_PAGE, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
# The field of a page's header that holds the CRC-32 of what follows it.
_CRC = 4
# Columns nearer than this are fetched as one.
_GAP_BYTES = 4096


class _ImpossibleError(ValueError):
    """A page claims what cannot be; the sentence says what."""


@dataclass(frozen=True)
class _Column:
    """One vector's pages in a row group: [rows, width] of `dtype`."""

    name: str
    start: int
    size: int
    rows: int
    width: int
    dtype: np.dtype[np.floating]


def read_vectors(
    shard: ShardFile,
    group: int,
    names: Sequence[str],
    *,
    out: Sequence[Vectors] | None = None,
    memory: RecycledMemory | None = None,
) -> dict[str, Vectors] | None:
    """Read vectors of one row group: [rows, H] each, as `file.read_row_group` gives them.

    Args:
        names: columns of the shard.
        memory: for the vectors, where `out` is not given.
        out: of each, where it goes: [rows, H] of the shard's dtype, whose rows are contiguous.

    Returns:
        The vectors by their names; None where a column is not as this project writes it, which
        pyarrow can then read.

    Raises:
        ActivationsError: a page claims more than the row group holds, or a checked shard's has
            another checksum than its header says.
    """
    columns = _find(shard, group, names)
    if columns is None:
        return None
    pages = _fetch(shard, columns)
    if out is None:
        first = columns[0]
        shape = (len(columns), first.rows, first.width)
        out = list((memory or RecycledMemory()).empty(shape, first.dtype))
    try:
        for column, into in zip(columns, out, strict=True):
            _decode(pages[column.name], column, into, checked=shard.checked)
    except _ImpossibleError as error:
        raise ActivationsError(
            f"row group {group} of {shard.url} is damaged ({error}): "
            "build or download the dataset again"
        ) from None
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError):
        return None
    return dict(zip(names, out, strict=True))


def _find(shard: ShardFile, group: int, names: Sequence[str]) -> list[_Column] | None:
    """Find the pages of columns; None where one is not of this project's form."""
    schema, file = shard.schema, shard.parquet
    leaves, metadata = file.schema, file.metadata.row_group(group)
    # Every column before the vectors has one leaf, and so has every vector.
    if len(leaves) != len(schema):
        return None
    # Its compression shows in its pages. Asked for one that it does not know, pyarrow aborts.
    dtypes = {kind: np.dtype(dtype) for dtype, kind in FLOAT_TYPES.items()}
    found: list[_Column] = []
    for name in names:
        index = schema.get_field_index(name)
        if index < 0:
            return None
        column, type_ = metadata.column(index), schema.field(index).type
        ours = (
            pa.types.is_fixed_size_list(type_)
            and type_.value_type in dtypes
            and leaves.column(index).max_definition_level == 1
            and column.path_in_schema.split(".")[0] == name
            and set(column.encodings) == {"RLE", "BYTE_STREAM_SPLIT"}
            and not column.has_dictionary_page
            and column.num_values == metadata.num_rows * type_.list_size
            and column.data_page_offset >= 0
            and column.total_compressed_size >= 0
        )
        if not ours:
            return None
        found.append(
            _Column(
                name=name,
                start=column.data_page_offset,
                size=column.total_compressed_size,
                rows=metadata.num_rows,
                width=type_.list_size,
                dtype=dtypes[type_.value_type],
            )
        )
    return found if len({(column.width, column.dtype) for column in found}) == 1 else None


def _fetch(shard: ShardFile, columns: Sequence[_Column]) -> dict[str, memoryview]:
    """Read the columns' bytes, neighbours at once."""
    runs: list[list[_Column]] = []
    end = -1 - _GAP_BYTES
    for column in sorted(columns, key=lambda column: column.start):
        if column.start - end > _GAP_BYTES:
            runs.append([])
        runs[-1].append(column)
        end = column.start + column.size
    pages = {}
    for run in runs:
        first, last = run[0], run[-1]
        content = shard.read(first.start, last.start + last.size - first.start)
        for column in run:
            at = column.start - first.start
            pages[column.name] = content[at : at + column.size]
    return pages


def _decode(content: memoryview, column: _Column, out: Vectors, *, checked: bool) -> None:
    """Decode a column's pages into `out`.

    Raises:
        _ImpossibleError: one of them claims more than the row group holds, or `checked` found
            another checksum.
        ValueError, LookupError, TypeError, ArithmeticError, OSError: they are not as described
            above.
    """
    codec = pa.Codec("zstd")
    itemsize = column.dtype.itemsize
    parts: list[npt.NDArray[np.uint8]] = []
    n_values, at = 0, 0
    n_wanted = column.rows * column.width
    while n_values < n_wanted:
        header, begin = read_struct(content, at)
        page = header[5]
        if header[1] != _DATA_PAGE:
            raise ValueError("not a data page of this form")
        if (page[2], page[3]) != (_BYTE_STREAM_SPLIT, _RLE):
            raise _ImpossibleError(
                f"a page of {column.name} is of another encoding than its column"
            )
        if not 0 < page[1] <= n_wanted - n_values:
            raise _ImpossibleError(
                f"a page of {column.name} claims {page[1]} of {n_wanted - n_values} values"
            )
        most = page[1] * itemsize + 2 * (4 + most_level_bytes(page[1]))
        if not 0 < header[2] <= most or not 0 < header[3] <= len(content) - begin:
            raise _ImpossibleError(
                f"a page of {column.name} with {page[1]} values claims {header[2]} bytes, "
                f"{header[3]} compressed"
            )
        at = begin + header[3]
        if checked and _CRC in header and zlib.crc32(content[begin:at]) != header[_CRC] % 2**32:
            raise _ImpossibleError(f"a page of {column.name} has another checksum")
        raw = codec.decompress(pa.py_buffer(content[begin:at]), header[2])
        values = without_levels(memoryview(raw), page[1], n_values, column.width)
        parts.append(np.frombuffer(values, np.uint8).reshape(itemsize, page[1]))
        n_values += page[1]
    words = out.view(f"u{itemsize}")
    if len(parts) == 1:
        _join_streams(parts[0].reshape(itemsize, *out.shape), words)
        return
    # A page may end inside a row.
    flat = np.empty(n_values, words.dtype)
    first = 0
    for part in parts:
        _join_streams(part, flat[first : first + part.shape[1]])
        first += part.shape[1]
    words[...] = flat.reshape(out.shape)


def _join_streams(streams: npt.NDArray[np.uint8], out: npt.NDArray[np.unsignedinteger]) -> None:
    """Put words together from their bytes, lowest first: streams[k] holds byte k of each.

    `out` is touched once: its rows may be far apart.
    """
    words = np.multiply(streams[-1], 256, dtype=out.dtype, casting="unsafe")
    for stream in streams[-2:0:-1]:
        np.add(words, stream, out=words)
        np.multiply(words, 256, out=words)
    np.add(words, streams[0], out=out)
