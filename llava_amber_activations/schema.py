"""The columns of a dataset folder, and how vectors lie in Arrow.

    default, L0 … L30   LEADING, x [H], targets [n, H]
    all_layers          LEADING, x_00 … [H], mlp_out_00 … [H]
    clt_features        sample, features [F]

A vector is a fixed-size list of floats whose elements are never null, which Parquet decodes about
twice as fast as nullable ones. Its feature type in `datasets` is chosen by `features_of` alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llava_amber_activations.checked_values import check_number
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.recipe import FORMAT_VERSION, MOST_LAYERS, check_format_version
from llava_amber_activations.typed_json import parse_json_object, read_object

if TYPE_CHECKING:
    import datasets

X, TARGETS, FEATURES = "x", "targets", "features"
SAMPLE, ID, IMAGE, POSITION, TOKEN_ID = "sample", "id", "image", "position", "token_id"
KIND, PATCH_ROW, PATCH_COL = "kind", "patch_row", "patch_col"
LEADING = (SAMPLE, ID, IMAGE, POSITION, TOKEN_ID, KIND, PATCH_ROW, PATCH_COL)
_STRINGS = (IMAGE, KIND)
INTEGERS = tuple(name for name in LEADING if name not in _STRINGS)

FLOAT_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
FLOAT_NAMES = {kind: name for name, kind in FLOAT_TYPES.items()}

_OUR_KEY = b"llava_amber_activations"
_ELEMENT = "element"

Vectors = npt.NDArray[np.floating]


@dataclass(frozen=True)
class _ShardMetadata:
    """What a shard's schema says of itself."""

    format_version: str
    n_layers: int

    def __post_init__(self) -> None:
        check_number("n_layers", self.n_layers, 1, MOST_LAYERS)


def dataset_dtype(store_dtype: str) -> str:
    """Return the float type that holds a store's values exactly and that `datasets` knows.

    float16 stays; bfloat16 is exact in float32, whose zero bytes compress to nothing.
    """
    return "float16" if store_dtype == "float16" else "float32"


def vector_type(width: int, dtype: str) -> pa.DataType:
    """Return the Arrow type of one vector: a list of exactly `width` floats, none of them null."""
    return pa.list_(pa.field(_ELEMENT, FLOAT_TYPES[dtype], nullable=False), width)


def _targets_type(width: int, dtype: str) -> pa.DataType:
    return pa.list_(pa.field(_ELEMENT, vector_type(width, dtype), nullable=False))


def _leading_fields() -> list[pa.Field]:
    return [
        pa.field(name, pa.string() if name in _STRINGS else pa.int32(), nullable=False)
        for name in LEADING
    ]


def default_schema(hidden_size: int, dtype: str, n_layers: int) -> pa.Schema:
    """Return the schema of a layer's own split."""
    fields = [
        *_leading_fields(),
        pa.field(X, vector_type(hidden_size, dtype), nullable=False),
        pa.field(TARGETS, _targets_type(hidden_size, dtype), nullable=False),
    ]
    return _with_metadata(pa.schema(fields), n_layers)


def all_layers_schema(
    names: Sequence[str], hidden_size: int, dtype: str, n_layers: int
) -> pa.Schema:
    """Return the schema of `all_layers` with the vectors `names`."""
    vector = vector_type(hidden_size, dtype)
    fields = [*_leading_fields(), *(pa.field(name, vector, nullable=False) for name in names)]
    return _with_metadata(pa.schema(fields), n_layers)


def clt_features_schema(n_features: int, dtype: str, n_layers: int) -> pa.Schema:
    """Return the schema of a layer's split of `clt_features`."""
    fields = [
        pa.field(SAMPLE, pa.int32(), nullable=False),
        pa.field(FEATURES, vector_type(n_features, dtype), nullable=False),
    ]
    return _with_metadata(pa.schema(fields), n_layers)


def features_of(schema: pa.Schema) -> datasets.Features:
    """Return the `datasets` features of a schema: the one place where their types are chosen."""
    import datasets  # Reading batches does without it, and half a second sooner.

    return datasets.Features.from_arrow_schema(schema.remove_metadata())


def _with_metadata(schema: pa.Schema, n_layers: int) -> pa.Schema:
    ours = {"format_version": FORMAT_VERSION, "n_layers": n_layers}
    return schema.with_metadata({_OUR_KEY: json.dumps(ours).encode()})


def with_features(schema: pa.Schema) -> pa.Schema:
    """Return a schema that also carries the features, as `datasets` reads them from a shard."""
    return schema.with_metadata({**features_of(schema).arrow_schema.metadata, **schema.metadata})


def layers_of(schema: pa.Schema, where: object) -> int:
    """Return how many layers the model had that a shard was made from.

    Raises:
        ActivationsError: the shard is not of this project, or of a newer major format.
    """
    text = (schema.metadata or {}).get(_OUR_KEY, b"{}")
    value = parse_json_object(text, f"the schema of {where}")
    check_format_version(value.get("format_version"), where)
    return read_object(_ShardMetadata, value, f"the schema of {where}", "of this project").n_layers


def width_of(schema: pa.Schema) -> int:
    """Return the width H of a shard's vectors."""
    types = (field.type for field in schema if pa.types.is_fixed_size_list(field.type))
    return int(next(types).list_size)


def float_name(schema: pa.Schema) -> str:
    """Return the dtype of a shard's vectors, `float16` or `float32`."""
    types = (field.type for field in schema if pa.types.is_fixed_size_list(field.type))
    value_type = next(types).value_type
    return next(name for name, kind in FLOAT_TYPES.items() if kind == value_type)


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
    return pa.ListArray.from_arrays(offsets, values, type=_targets_type(width, str(targets.dtype)))


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


def elements_of(array: pa.Array) -> pa.Array:
    """View the elements of a list array's lists; `flatten` imports half of pyarrow first.

    Raises:
        ActivationsError: a list is missing.
    """
    _check_present(array)
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
    _check_present(array)
    dtype = numpy_dtype(array.type)
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


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


def _check_present(array: pa.Array) -> None:
    if array.null_count:
        raise ActivationsError("a vector or a number of a row is missing: the data is damaged")


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
