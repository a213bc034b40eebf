"""Rows whose vectors are held in memory: in which buffers, and where in them.

A buffer is one piece of memory that somebody owns and that is held here: the mapping of a prepared
data set's Arrow file, a record batch, an array that pages were decoded into. A vector is found in
it by a number, never by an address:

    a buffer that holds nothing else     windows [vectors, H], one after the other
    any other, as a mapped Arrow file    windows [elements - H + 1, H], one at each element
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    check_present,
    elements_of,
    numbers_in,
    numbers_of,
    numpy_dtype,
    targets_per_row,
)
from llava_amber_activations.formats.columns import FLOATS, KIND, TARGETS, kind_codes

RowNumbers = npt.NDArray[np.int64]
# What a column says of each row.
Numbers = npt.NDArray[np.int32] | npt.NDArray[np.float32]
# Width and dtype: what the vectors that are copied together have in common.
Kind = tuple[int, str]


@dataclass(frozen=True)
class HeldVectors:
    """Where some rows' vectors of one name are.

    Attributes:
        buffers: int64 [rows], in which of the buffers of their kind each row's vectors are.
        starts: int64 [rows, n], at which of that buffer's windows.
        shape: of a row in a batch: (H,) or (n, H).
        dtype: of the vectors.
    """

    buffers: RowNumbers
    starts: RowNumbers
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def kind(self) -> Kind:
        """Which vectors these can be copied with."""
        return self.shape[-1], self.dtype.str


@dataclass(frozen=True)
class HeldRows:
    """Some rows, held in memory.

    Attributes:
        numbers: int32 [rows] each, by their names; `logprob` is float32.
        vectors: by their names.
        windows: the buffers of each kind: [many, H] each, whose row is what begins there.

    Raises:
        ActivationsError: a vector is where no window of its buffer is.
    """

    numbers: dict[str, Numbers]
    vectors: dict[str, HeldVectors]
    windows: dict[Kind, tuple[torch.Tensor, ...]]

    def __post_init__(self) -> None:
        for name, each in self.vectors.items():
            if not each.starts.size:
                continue
            counts = np.array([len(windows) for windows in self.windows[each.kind]])
            if each.starts.min() < 0 or (each.starts.max(axis=1) >= counts[each.buffers]).any():
                raise _elsewhere(name)

    def __reduce__(self) -> Any:
        raise TypeError("memory of this process is nothing to another process")

    def __len__(self) -> int:
        counts = [len(each.starts) for each in self.vectors.values()]
        return counts[0] if counts else len(next(iter(self.numbers.values())))


def rows_of_table(table: pa.Table) -> HeldRows:
    """Find the rows of a table, where they are; `kind` as its code, other strings left out.

    Raises:
        ActivationsError: the rows differ in their number of targets, or something is missing, or
            vectors are lists of any length.
    """
    numbers: dict[str, Numbers] = {}
    vectors: dict[str, HeldVectors] = {}
    buffers: dict[Kind, _Buffers] = {}
    for field in table.schema:
        name, type_ = field.name, field.type
        shape: tuple[int, ...] = ()
        chunks = [chunk for chunk in table[name].chunks if len(chunk)]
        if name == TARGETS and pa.types.is_list(type_):
            type_, shape = type_.value_type, (targets_per_row(chunks),)
        if pa.types.is_integer(type_) or (name in FLOATS and pa.types.is_floating(type_)):
            numbers[name] = numbers_in(table[name])
            continue
        if name == KIND and pa.types.is_string(type_):
            numbers[name] = kind_codes(table[name].to_pylist())
            continue
        if pa.types.is_list(type_) and pa.types.is_floating(type_.value_type):
            raise ActivationsError(
                f"{name} holds lists of any length ({field.type}), not vectors: leave the column "
                "out, or pass features=dataset.features to the map that made it"
            )
        if not pa.types.is_fixed_size_list(type_):
            continue
        width, dtype = type_.list_size, numpy_dtype(type_.value_type)
        of_kind = buffers.setdefault((width, dtype.str), _Buffers(width, dtype))
        n = math.prod(shape)
        found = [_nothing(n), *(of_kind.find(name, chunk, n) for chunk in chunks)]
        which, starts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        # Columns of a file are cut alike: what is looked up in one of them holds for all.
        same = next(
            (v.buffers for v in vectors.values() if np.array_equal(v.buffers, which)), which
        )
        vectors[name] = HeldVectors(same, starts, (*shape, width), dtype)
    windows = {kind: tuple(each.windows) for kind, each in buffers.items()}
    return HeldRows(numbers, vectors, windows)


def rows_of_block(
    numbers: dict[str, Numbers], block: Vectors, shapes: dict[str, tuple[int, ...]]
) -> HeldRows:
    """Return the rows of an array that holds nothing but their vectors.

    Args:
        numbers: [rows] each, by their names.
        block: [rows, vectors of a row, H], contiguous.
        shapes: of a row in a batch, (H,) or (n, H), in the order of the vectors of a row.
    """
    rows, of_row, width = block.shape
    firsts = np.arange(rows, dtype=np.int64)[:, None] * of_row
    buffers = np.zeros(rows, np.int64)
    vectors, number = {}, 0
    for name, shape in shapes.items():
        n = math.prod(shape[:-1])
        starts = firsts + np.arange(number, number + n)
        vectors[name] = HeldVectors(buffers, starts, shape, block.dtype)
        number += n
    windows = torch.from_numpy(block.reshape(rows * of_row, width))
    return HeldRows(numbers, vectors, {(width, block.dtype.str): (windows,)})


def join_rows(parts: Sequence[HeldRows]) -> HeldRows:
    """Return the rows of several parts, one after the other, where they are; nothing is copied.

    Raises:
        ActivationsError: the parts differ in the columns, or in their vectors' shapes or dtypes.
    """
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    check_alike(parts)
    first = parts[0]
    vectors = {}
    for name, each in first.vectors.items():
        counts = [len(part.windows[each.kind]) for part in parts]
        shifts = np.cumsum([0, *counts])
        pairs = list(zip([part.vectors[name] for part in parts], shifts, strict=False))
        vectors[name] = HeldVectors(
            np.concatenate([held.buffers + shift for held, shift in pairs]),
            np.concatenate([held.starts for held, _ in pairs]),
            each.shape,
            each.dtype,
        )
    return HeldRows(
        numbers={n: np.concatenate([part.numbers[n] for part in parts]) for n in first.numbers},
        vectors=vectors,
        windows={
            kind: tuple(windows for part in parts for windows in part.windows[kind])
            for kind in first.windows
        },
    )


def check_alike(parts: Sequence[HeldRows]) -> None:
    """Check that rows of several parts can stand in one batch.

    Raises:
        ActivationsError: the parts differ in the columns, or in their vectors' shapes or dtypes.
    """
    first = _columns(parts[0])
    for part in parts[1:]:
        if _columns(part) != first:
            raise ActivationsError(
                f"rows of one batch differ in their columns: {first} and {_columns(part)}. "
                "The shards are of different datasets, or damaged: build or download them again"
            )


def _columns(rows: HeldRows) -> dict[str, str]:
    """Describe the columns of some rows, as far as they must agree in a batch."""
    vectors = {name: f"{list(v.shape)} {v.dtype}" for name, v in rows.vectors.items()}
    return {**{name: str(values.dtype) for name, values in rows.numbers.items()}, **vectors}


class _Buffers:
    """The buffers of vectors of one kind, each of them once."""

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self.windows: list[torch.Tensor] = []
        self._width = width
        self._dtype = dtype
        self._numbers: dict[tuple[int, int], int] = {}

    def find(self, name: str, chunk: pa.Array, n: int) -> tuple[RowNumbers, RowNumbers]:
        """Find a chunk's vectors, `n` a row.

        Returns:
            In which buffer each row's are, int64 [rows], and where, int64 [rows, n].

        Raises:
            ActivationsError: something is missing, or they lie outside of their memory.
        """
        rows = len(chunk)
        if not n:
            return np.zeros(rows, np.int64), np.empty((rows, 0), np.int64)
        lists = chunk if pa.types.is_fixed_size_list(chunk.type) else elements_of(chunk)
        numbers = elements_of(lists)
        if len(numbers) != rows * n * self._width:
            raise _elsewhere(name)
        buffer, first = self._place(name, numbers)
        starts = first + self._width * np.arange(rows * n, dtype=np.int64)
        return np.full(rows, buffer), starts.reshape(rows, n)

    def _place(self, name: str, numbers: pa.Array) -> tuple[int, int]:
        """Return in which buffer some numbers are, and from which of its elements on.

        Those that do not begin at a multiple of an element's size, as a mapped file's may, are
        copied.
        """
        own, size = numbers.buffers()[1], self._dtype.itemsize
        begin, n_bytes = numbers.offset * size, len(numbers) * size
        check_present(numbers)
        if own is None or begin + n_bytes > own.size:
            raise _elsewhere(name)
        whole = _whole_buffer(own)
        begin += own.address - whole.address
        if begin % size or whole.address % size:
            copy = pa.py_buffer(numbers_of(numbers).copy())
            return self._number(copy), 0
        return self._number(whole), begin // size

    def _number(self, buffer: pa.Buffer) -> int:
        key = buffer.address, buffer.size
        if key not in self._numbers:
            self._numbers[key] = len(self.windows)
            self.windows.append(_windows(buffer, self._width, self._dtype))
        return self._numbers[key]


def _whole_buffer(buffer: pa.Buffer) -> pa.Buffer:
    """Return what a buffer is a slice of: all of a mapped file, of a record batch, or itself."""
    end = buffer.address + buffer.size
    while (parent := buffer.parent) is not None:
        if parent.address > buffer.address or parent.address + parent.size < end:
            break
        buffer = parent
    return buffer


def _windows(buffer: pa.Buffer, width: int, dtype: np.dtype[Any]) -> torch.Tensor:
    """Return what begins at each element of a buffer, which it holds: [elements - H + 1, H]."""
    n_elements = buffer.size // dtype.itemsize
    with warnings.catch_warnings():
        # torch warns that it must not write there; nothing does.
        warnings.simplefilter("ignore", UserWarning)
        elements = torch.from_numpy(np.frombuffer(buffer, dtype, n_elements))
    return elements.as_strided((n_elements - width + 1, width), (1, 1))


def _nothing(n: int) -> tuple[RowNumbers, RowNumbers]:
    return np.empty(0, np.int64), np.empty((0, n), np.int64)


def _elsewhere(name: str) -> ActivationsError:
    return ActivationsError(
        f"vectors of {name} do not lie where their column's memory is: the data is damaged. "
        "Build or download it again"
    )
