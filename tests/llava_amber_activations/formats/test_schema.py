"""Vectors in Arrow: round trips of any shape, without copies where there need be none."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import List, Value
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError
from llava_amber_activations.formats.arrow_vectors import (
    arrow_to_targets,
    arrow_to_vectors,
    float_name,
    targets_to_arrow,
    vectors_to_arrow,
    width_of,
)
from llava_amber_activations.formats.dtypes import dataset_dtype
from llava_amber_activations.formats.schema import (
    all_layers_schema,
    default_schema,
    features_of,
    layers_of,
)

dtypes = st.sampled_from([np.float16, np.float32])
sizes = st.integers(1, 6)


def numbers(shape, dtype):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@given(st.integers(0, 9), sizes, dtypes, st.integers(0, 9), st.integers(1, 3))
def test_vectors_round_trip(rows, width, dtype, start, n_chunks):
    """Whole, sliced, and in several chunks."""
    vectors = numbers((rows, width), dtype)
    array = vectors_to_arrow(vectors)
    assert np.array_equal(arrow_to_vectors(array), vectors)
    assert np.array_equal(arrow_to_vectors(array.slice(start)), vectors[start:])
    chunked = pa.chunked_array([array] * n_chunks)
    assert np.array_equal(arrow_to_vectors(chunked), np.concatenate([vectors] * n_chunks))


@given(st.integers(1, 9), sizes, sizes, dtypes, st.integers(0, 8))
def test_targets_round_trip(rows, n, width, dtype, start):
    targets = numbers((rows, n, width), dtype)
    array = targets_to_arrow(targets)
    assert np.array_equal(arrow_to_targets(array), targets)
    if start < rows:
        assert np.array_equal(arrow_to_targets(array.slice(start)), targets[start:])
    assert array[0].as_py() == targets[0].tolist()


def test_no_copy_is_made():
    """The array's numbers lie where numpy's do, both ways."""
    vectors = numbers((5, 4), np.float16)
    array = vectors_to_arrow(vectors)
    assert arrow_to_vectors(array).ctypes.data == vectors.ctypes.data
    assert arrow_to_vectors(array.slice(2)).ctypes.data == vectors[2:].ctypes.data
    targets = numbers((5, 2, 4), np.float32)
    assert arrow_to_targets(targets_to_arrow(targets)).ctypes.data == targets.ctypes.data


def test_rows_that_differ_in_targets_are_refused():
    vector = vectors_to_arrow(numbers((3, 2), np.float32))
    ragged = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), vector)
    with pytest.raises(ActivationsError, match="differ in their number of targets"):
        arrow_to_targets(ragged)


def test_features_and_metadata():
    schema = default_schema(4096, "float16", 32)
    features = features_of(schema)
    assert features["x"] == List(Value("float16"), length=4096)
    assert features["targets"] == List(List(Value("float16"), length=4096))
    schema = all_layers_schema(["x_00", "mlp_out_00"], 8, "float32", 1)
    assert (width_of(schema), float_name(schema), layers_of(schema, "f")) == (8, "float32", 1)
    with pytest.raises(ActivationsError, match="f names no format version"):
        layers_of(schema.remove_metadata(), "f")


@pytest.mark.parametrize(
    ("kept", "written"),
    [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32")],
)
def test_dtype_of_a_dataset(kept, written):
    assert dataset_dtype(kept) == written
