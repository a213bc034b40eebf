"""How vectors lie in Arrow, and the way there and back without a copy.

A vector is a fixed-size list of floats whose elements are never null, which Parquet decodes about
twice as fast as nullable ones; a row's targets are a list of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dtypes import DATASET_DTYPES

FLOAT_TYPES = {name: pa.type_for_alias(name) for name in DATASET_DTYPES}
FLOAT_NAMES = {kind: name for name, kind in FLOAT_TYPES.items()}

_ELEMENT = "element"

Vectors = npt.NDArray[np.floating]


def vector_type(width: int, dtype: str) -> pa.DataType:
    """Return the Arrow type of one vector: a list of exactly `width` floats, none of them null."""
    return pa.list_(pa.field(_ELEMENT, FLOAT_TYPES[dtype], nullable=False), width)


def targets_type(width: int, dtype: str) -> pa.DataType:
    """Return the Arrow type of a row's targets: a list of vectors, none of them null."""
    return pa.list_(pa.field(_ELEMENT, vector_type(width, dtype), nullable=False))


def width_of(schema: pa.Schema) -> int:
    """Return the width H of a shard's vectors."""
    types = (field.type for field in schema if pa.types.is_fixed_size_list(field.type))
    return int(next(types).list_size)


def float_name(schema: pa.Schema) -> str:
    """Return the dtype of a shard's vectors, `float16` or `float32`."""
    types = (field.type for field in schema if pa.types.is_fixed_size_list(field.type))
    return FLOAT_NAMES[next(types).value_type]


def vectors_to_arrow(vectors: Vectors, type_: pa.DataType | None = None) -> pa.Array:
    """Lay [rows, H] in a fixed-size-list array, without a copy where it is contiguous."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    type_ = type_ or vector_type(vectors.shape[1], str(vectors.dtype))
    return pa.FixedSizeListArray.from_arrays(flat, type=type_)


def targets_to_arrow(targets: Vectors) -> pa.Array:
    """Lay [rows, n, H] in a list-of-vectors array, without a copy where it is contiguous."""
    rows, n, width = targets.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * n)
    values = vectors_to_arrow(targets.reshape(rows * n, width))
    return pa.ListArray.from_arrays(offsets, values, type=targets_type(width, str(targets.dtype)))


def arrow_to_vectors(column: pa.ChunkedArray | pa.Array) -> Vectors:
    """View a column of vectors as [rows, H]; a column of several chunks is joined first."""
    array = _one_array(column)
    width = array.type.list_size
    return numbers_of(elements_of(array)).reshape(-1, width)


def arrow_to_targets(column: pa.ChunkedArray | pa.Array) -> Vectors:
    """View a column of lists of vectors as [rows, n, H].

    Raises:
        ActivationsError: the rows do not all have the same number of targets.
    """
    array = _one_array(column)
    vectors = arrow_to_vectors(elements_of(array))
    if not len(array):
        return vectors.reshape(0, 0, vectors.shape[1])
    return vectors.reshape(len(array), targets_per_row([array]), -1)


def targets_per_row(arrays: Sequence[pa.ListArray]) -> int:
    """Return how many targets every row of some lists of vectors has; 0 where there is no row.

    Raises:
        ActivationsError: the rows differ in it.
    """
    offsets = [numbers_of(array.offsets) for array in arrays]
    counts = {int(count) for each in offsets for count in np.unique(np.diff(each))}
    if len(counts) > 1:
        raise ActivationsError("rows of one layer differ in their number of targets")
    return counts.pop() if counts else 0


def check_present(array: pa.Array) -> None:
    """Check that nothing is missing.

    Raises:
        ActivationsError: a list or a number is.
    """
    if array.null_count:
        raise ActivationsError("a vector or a number of a row is missing: the data is damaged")


def elements_of(array: pa.Array) -> pa.Array:
    """View the elements of a list array's lists; `flatten` imports half of pyarrow first.

    Raises:
        ActivationsError: a list is missing.
    """
    check_present(array)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        return array.values.slice(array.offset * width, len(array) * width)
    if not len(array):
        return array.values.slice(0, 0)
    first, last = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
    return array.values.slice(first, last - first)


def numbers_of(array: pa.Array) -> npt.NDArray[Any]:
    """View an array of numbers as numpy does.

    `to_numpy` imports pandas first, which takes as long as the rest of pyarrow.

    Raises:
        ActivationsError: a number is missing.
    """
    check_present(array)
    dtype = numpy_dtype(array.type)
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def numbers_in(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return a column of numbers as one array: a view where the column is one chunk.

    Raises:
        ActivationsError: as `numbers_of`.
    """
    chunks = [numbers_of(chunk) for chunk in column.chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate([np.empty(0, numpy_dtype(column.type)), *chunks])


def numpy_dtype(type_: pa.DataType) -> np.dtype[Any]:
    """Return what numpy calls a type of numbers.

    Raises:
        ActivationsError: it is no type of whole bytes that numpy has.
    """
    kinds = {
        "f": pa.types.is_floating,
        "i": pa.types.is_signed_integer,
        "u": pa.types.is_unsigned_integer,
    }
    for kind, is_of_kind in kinds.items():
        if is_of_kind(type_):
            return np.dtype(f"{kind}{type_.bit_width // 8}")
    raise ActivationsError(f"columns of {type_} cannot become tensors: leave them out")


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
