"""Rows copied out of memory into tensors, in any order, at the speed of memory.

Rows lie in as many buffers as they were read in. Over all of them one tensor is laid whose row n
is what begins n elements after the lowest address. Most of its rows are no vectors; those that
are, are the ones whose addresses are known, and one `index_select` copies any of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import (
    Vectors,
    elements_of,
    numbers_of,
    numpy_dtype,
    targets_per_row,
)
from llava_amber_activations.formats.columns import TARGETS
from llava_amber_activations.vectors.batch import Batch
from llava_amber_activations.vectors.recycled import RecycledMemory

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VectorPlaces:
    """Where some rows' vectors of one name lie.

    Attributes:
        addresses: int64 [rows, n], of each row's n vectors.
        shape: of a row in a batch: (H,) or (n, H).
        dtype: of the vectors.
    """

    addresses: RowNumbers
    shape: tuple[int, ...]
    dtype: np.dtype[np.floating]


@dataclass(frozen=True)
class RowPlaces:
    """Where rows lie in memory.

    Attributes:
        integers: int32 [rows] each, by their names.
        vectors: by their names.
        memory: whatever owns what the addresses point to.
        spans: int64 [n, 2], where each piece of that memory begins and ends.
    """

    integers: dict[str, npt.NDArray[np.int32]]
    vectors: dict[str, VectorPlaces]
    memory: Any
    spans: RowNumbers

    def __reduce__(self) -> Any:
        raise TypeError("addresses are nothing to another process")

    def __len__(self) -> int:
        counts = [len(each.addresses) for each in self.vectors.values()]
        return counts[0] if counts else len(next(iter(self.integers.values())))


def places_in_table(table: pa.Table) -> RowPlaces:
    """Find the rows of a table; columns of strings are left out.

    Raises:
        ActivationsError: the rows differ in their number of targets, or something is missing.
    """
    integers, vectors = {}, {}
    arrays: list[Vectors] = []
    for field in table.schema:
        chunks = [chunk for chunk in table[field.name].chunks if len(chunk)]
        if field.name == TARGETS:
            type_ = field.type.value_type
            n = targets_per_row(chunks)
            views = _views([elements_of(chunk) for chunk in chunks], type_)
            vectors[field.name] = _places(views, type_, n, (n, type_.list_size))
        elif pa.types.is_fixed_size_list(field.type):
            views = _views(chunks, field.type)
            vectors[field.name] = _places(views, field.type, 1, (field.type.list_size,))
        elif pa.types.is_integer(field.type):
            numbers = [numbers_of(chunk) for chunk in chunks] or [np.empty(0, np.int32)]
            integers[field.name] = np.concatenate(numbers)
            continue
        else:
            continue
        arrays += views
    return RowPlaces(integers, vectors, (table, arrays), spans_of(arrays))


def places_in_array(vectors: Vectors) -> RowNumbers:
    """Return the address of every vector of [rows, H], whose rows need not be neighbours."""
    first: int = vectors.__array_interface__["data"][0]
    return first + np.arange(len(vectors), dtype=np.int64) * vectors.strides[0]


def spans_of(arrays: Sequence[Vectors]) -> RowNumbers:
    """Return where the memory of some contiguous arrays begins and ends: neighbours as one."""
    firsts = ((int(array.__array_interface__["data"][0]), array.nbytes) for array in arrays)
    spans: list[list[int]] = []
    for first, size in sorted(firsts):
        if spans and spans[-1][1] == first:
            spans[-1][1] += size
        else:
            spans.append([first, first + size])
    return np.array(spans, np.int64).reshape(-1, 2)


def join_places(parts: Sequence[RowPlaces]) -> RowPlaces:
    """Return where the rows of several parts lie, one after the other; nothing is copied.

    Raises:
        ActivationsError: the parts differ in the columns, or in their vectors' shapes or dtypes.
    """
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for part in parts[1:]:
        if _kinds(part) != _kinds(first):
            raise ActivationsError(
                f"rows of one batch differ in their columns: {_kinds(first)} and {_kinds(part)}. "
                "The shards are of different datasets, or damaged: build or download them again"
            )
    return RowPlaces(
        integers={n: np.concatenate([part.integers[n] for part in parts]) for n in first.integers},
        vectors={
            name: VectorPlaces(
                np.concatenate([part.vectors[name].addresses for part in parts]),
                places.shape,
                places.dtype,
            )
            for name, places in first.vectors.items()
        },
        memory=[part.memory for part in parts],
        spans=np.concatenate([part.spans for part in parts]),
    )


def _kinds(places: RowPlaces) -> dict[str, str]:
    """Describe the columns of some rows, as far as they must agree in a batch."""
    vectors = {name: f"{list(v.shape)} {v.dtype}" for name, v in places.vectors.items()}
    return {**{name: str(values.dtype) for name, values in places.integers.items()}, **vectors}


def _views(chunks: Sequence[pa.FixedSizeListArray], type_: pa.DataType) -> list[Vectors]:
    """View the vectors of some chunks: [rows, H] each, of contiguous rows.

    A buffer that does not begin at a multiple of an element's size, as one of a mapped file may,
    is copied: the one tensor over all of them has its elements at such multiples.
    """
    views = []
    for chunk in chunks:
        view = numbers_of(elements_of(chunk)).reshape(-1, type_.list_size)
        aligned = view.__array_interface__["data"][0] % view.itemsize == 0
        views.append(view if aligned else view.copy())
    return views


def _places(
    views: Sequence[Vectors], type_: pa.DataType, n: int, shape: tuple[int, ...]
) -> VectorPlaces:
    addresses = np.concatenate([*map(places_in_array, views), np.empty(0, np.int64)])
    dtype = numpy_dtype(type_.value_type)
    return VectorPlaces(addresses.reshape(-1, n) if n else addresses[:, None], shape, dtype)


class RowGather:
    """Copies any of some rows into tensors.

    Args:
        places: of the rows.
        memory: for what is copied.
        in_parallel: copy with all of torch's threads. Without, where others decode meanwhile: they
            would wait for each other.
    """

    def __init__(self, places: RowPlaces, memory: RecycledMemory, *, in_parallel: bool) -> None:
        self._places = places
        self._memory = memory
        self._in_parallel = in_parallel
        kinds: dict[tuple[int, str], list[str]] = {}
        for name, each in places.vectors.items():
            kinds.setdefault((each.shape[-1], each.dtype.str), []).append(name)
        self._laid = [_lay(places, names) for names in kinds.values()]

    def rows(self, rows: RowNumbers) -> Batch:
        """Copy rows: integers [B], vectors [B, H], targets [B, n, H]; the caller's own."""
        batch = Batch()
        for name, column in self._places.integers.items():
            batch[name] = torch.from_numpy(column[rows])
        for laid in self._laid:
            wanted = [starts[rows].reshape(-1) for starts in laid.starts.values()]
            copied = self._copied(laid.windows, np.concatenate(wanted))
            first = 0
            for name, numbers in zip(laid.starts, wanted, strict=True):
                part = copied[first : first + len(numbers)]
                batch[name] = part.view(len(rows), *self._places.vectors[name].shape)
                first += len(numbers)
        return batch

    def _copied(self, windows: torch.Tensor, starts: RowNumbers) -> torch.Tensor:
        if not self._in_parallel:
            return torch.from_numpy(windows.numpy()[starts])
        dtype = windows[:0].numpy().dtype
        out = torch.from_numpy(self._memory.empty((len(starts), windows.shape[1]), dtype))
        return torch.index_select(windows, 0, torch.from_numpy(starts), out=out)


class BatchGather:
    """Copies rows of one block after the other into batches.

    What it found out about the last block, and memory, serve the next batch, and the next epoch.
    Sent to another process, it begins anew there.
    """

    def __init__(self, *, in_parallel: bool) -> None:
        self._in_parallel = in_parallel
        self._memory = RecycledMemory()
        self._last: tuple[RowPlaces, RowGather] | None = None

    def __reduce__(self) -> Any:
        return partial(BatchGather, in_parallel=self._in_parallel), ()

    def batch(self, parts: Sequence[tuple[RowPlaces, RowNumbers]]) -> Batch:
        """Copy rows of several blocks, one after the other, into one batch."""
        if len(parts) > 1:
            firsts = np.cumsum([0, *(len(places) for places, _ in parts)])
            rows = [rows + first for first, (_, rows) in zip(firsts, parts, strict=False)]
            joined = join_places([places for places, _ in parts])
            return self._gather(joined).rows(np.concatenate(rows))
        places, wanted = parts[0]
        if self._last is None or self._last[0] is not places:
            self._last = places, self._gather(places)
        return self._last[1].rows(wanted)

    def _gather(self, places: RowPlaces) -> RowGather:
        return RowGather(places, self._memory, in_parallel=self._in_parallel)


@dataclass(frozen=True)
class _Laid:
    """The one tensor over all vectors of one width and dtype.

    Attributes:
        windows: [many, H], what begins at every element from the lowest address on.
        starts: of each name, int64 [rows, n]: at which of those its vectors are.
    """

    windows: torch.Tensor
    starts: dict[str, RowNumbers]


def _lay(places: RowPlaces, names: Sequence[str]) -> _Laid:
    vectors = {name: places.vectors[name] for name in names}
    first = vectors[names[0]]
    width, itemsize = first.shape[-1], first.dtype.itemsize
    if not len(places):
        empty = torch.from_numpy(np.empty((0, width), first.dtype))
        return _Laid(empty, {name: each.addresses for name, each in vectors.items()})
    for name, each in vectors.items():
        _check_inside(name, each.addresses, width * itemsize, itemsize, places.spans)
    base = min(int(each.addresses.min()) for each in vectors.values())
    starts = {name: (each.addresses - base) // itemsize for name, each in vectors.items()}
    n_windows = 1 + max(int(each.max()) for each in starts.values())
    memory = (ctypes.c_char * ((n_windows - 1 + width) * itemsize)).from_address(base)
    dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
    laid = torch.frombuffer(memory, dtype=dtype).as_strided((n_windows, width), (1, 1))
    return _Laid(laid, starts)


def _check_inside(
    name: str, addresses: RowNumbers, size: int, itemsize: int, spans: RowNumbers
) -> None:
    """Check that vectors of `size` bytes at some addresses lie in known memory, and at elements.

    Raises:
        ActivationsError: one does not; what would be copied is not a vector.
    """
    ordered = np.concatenate([[[0, 0]], spans[np.argsort(spans[:, 0])]])
    span = np.searchsorted(ordered[:, 0], addresses, side="right") - 1
    inside = addresses + size <= ordered[span, 1]
    if not inside.all() or (addresses & (itemsize - 1)).any():
        raise ActivationsError(
            f"vectors of {name} do not lie where their column's memory is: the data is damaged. "
            "Build or download it again"
        )
