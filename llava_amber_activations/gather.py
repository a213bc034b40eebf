"""Rows copied out of Arrow's buffers into tensors, in any order, at the speed of memory.

A column's vectors lie in as many buffers as it has chunks. Over all of them one tensor is laid
whose row n is what begins n elements after the lowest address. Most of its rows are no vectors;
those that are, are the ones whose starts are known, and one `index_select` copies any of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from llava_amber_activations.schema import TARGETS, numbers_of, targets_per_row

Batch = dict[str, torch.Tensor]
RowNumbers = npt.NDArray[np.int64]

# A table may hold its targets as one column each: "targets.0", "targets.1", …
ONE_TARGET = TARGETS + "."

_TORCH_DTYPES = {pa.float16(): torch.float16, pa.float32(): torch.float32}


@dataclass(frozen=True)
class _Vectors:
    """The vectors of one column, or of several.

    Attributes:
        windows: [many, H], what begins at every element from the lowest address on.
        starts: int64 [rows, n], at which of those each row's vectors are.
        shape: of a row: (H,) or (n, H).
    """

    windows: torch.Tensor
    starts: torch.Tensor
    shape: tuple[int, ...]

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Copy rows: [len(rows), *shape]."""
        wanted = self.starts.index_select(0, rows).view(-1)
        return self.windows.index_select(0, wanted).view(len(rows), *self.shape)


class RowGather:
    """Copies any rows of a table; every column but the strings becomes a tensor.

    Raises:
        ActivationsError: the rows differ in their number of targets.
    """

    def __init__(self, table: pa.Table) -> None:
        # Keeps the buffers alive.
        self._table = table
        self._integers: dict[str, torch.Tensor] = {}
        self._vectors: dict[str, _Vectors] = {}
        self._names: list[str] = []
        for field in table.schema:
            name, column = field.name, table[field.name]
            if name.startswith(ONE_TARGET):
                continue
            if name == TARGETS:
                self._vectors[name] = _lists(column)
            elif pa.types.is_fixed_size_list(field.type):
                self._vectors[name] = _columns([column], joined=False)
            elif pa.types.is_integer(field.type):
                self._integers[name] = torch.from_numpy(
                    np.concatenate([numbers_of(chunk) for chunk in _filled(column)] or [_NONE])
                )
            else:
                continue
            self._names.append(name)
        single = [name for name in table.column_names if name.startswith(ONE_TARGET)]
        if single:
            self._vectors[TARGETS] = _columns([table[name] for name in single], joined=True)
            self._names.append(TARGETS)

    def rows(self, rows: RowNumbers) -> Batch:
        """Copy rows: vectors [B, H], targets [B, n, H], integers [B]; the caller's own."""
        numbers = torch.from_numpy(rows)
        return {
            name: self._vectors[name].rows(numbers)
            if name in self._vectors
            else self._integers[name].index_select(0, numbers)
            for name in self._names
        }


_NONE = np.empty(0, dtype=np.int32)


def _filled(column: pa.ChunkedArray) -> list[pa.Array]:
    return [chunk for chunk in column.chunks if len(chunk)]


def _columns(columns: Sequence[pa.ChunkedArray], *, joined: bool) -> _Vectors:
    """Lay out columns of vectors, joined as the targets of a row or a single one."""
    type_ = columns[0].type
    width, n_rows = type_.list_size, len(columns[0])
    chunks = [[(_address(chunk), len(chunk)) for chunk in _filled(column)] for column in columns]
    starts = [_addresses(column, width, type_.value_type) for column in chunks]
    matrix = np.stack(starts, axis=1) if n_rows else np.empty((0, len(columns)), dtype=np.int64)
    return _laid(matrix, type_, (len(columns), width) if joined else (width,))


def _lists(column: pa.ChunkedArray) -> _Vectors:
    """Lay out a column of lists of vectors."""
    arrays = _filled(column)
    n, type_ = targets_per_row(arrays), column.type.value_type
    chunks = [(_address(array.flatten()), len(array) * n) for array in arrays]
    starts = _addresses(chunks, type_.list_size, type_.value_type)
    return _laid(starts.reshape(len(column), n), type_, (n, type_.list_size))


def _address(vectors: pa.FixedSizeListArray) -> int:
    """Return the address of an array's first vector."""
    values = numbers_of(vectors.flatten())
    address: int = values.__array_interface__["data"][0]
    return address


def _addresses(chunks: Sequence[tuple[int, int]], width: int, type_: pa.DataType) -> RowNumbers:
    """Return the address of every vector of some chunks (address, vectors): int64 [vectors]."""
    n_bytes = width * _TORCH_DTYPES[type_].itemsize
    parts = [first + np.arange(count, dtype=np.int64) * n_bytes for first, count in chunks]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _laid(addresses: RowNumbers, type_: pa.DataType, shape: tuple[int, ...]) -> _Vectors:
    """Lay the one tensor over vectors at `addresses`, int64 [rows, n]."""
    width, dtype = type_.list_size, _TORCH_DTYPES[type_.value_type]
    if not addresses.size:
        return _Vectors(torch.empty(0, width, dtype=dtype), torch.from_numpy(addresses), shape)
    base = int(addresses.min())
    starts = (addresses - base) // dtype.itemsize
    n_windows = int(starts.max()) + 1
    memory = (ctypes.c_char * ((n_windows - 1 + width) * dtype.itemsize)).from_address(base)
    windows = torch.frombuffer(memory, dtype=dtype).as_strided((n_windows, width), (1, 1))
    return _Vectors(windows, torch.from_numpy(starts), shape)
