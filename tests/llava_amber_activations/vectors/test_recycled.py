"""Memory is used again when nothing holds it, and never before."""

import pickle

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations.vectors.recycled import RecycledMemory

HALF = np.dtype(np.float16)

# What keeps an array's memory: itself, a view, a tensor, a view of a tensor, an inner reference.
HOLDERS = (
    lambda array: array,
    lambda array: array[1:, ::2],
    torch.from_numpy,
    lambda array: torch.from_numpy(array).view(-1)[3:],
    lambda array: {"x": [memoryview(array)]},
)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from(HOLDERS), st.integers(0, 3)), max_size=30
    )
)
def test_what_is_held_is_left_alone(steps):
    """Whatever is asked for and dropped in whatever order, no two held arrays share memory."""
    memory = RecycledMemory()
    held = []
    for rows, holder, drop in steps:
        array = memory.empty((rows, 4), HALF)
        assert array.shape == (rows, 4) and array.dtype == HALF
        for other, _ in held:
            assert array.ctypes.data + array.nbytes <= other.start or (
                other.stop <= array.ctypes.data
            )
        place = range(array.ctypes.data, array.ctypes.data + array.nbytes)
        held.append((place, holder(array)))
        del array
        del held[:drop]


def test_it_is_used_again():
    memory = RecycledMemory()
    addresses = set()
    for rows in (64, 64, 17, 64):
        array = memory.empty((rows, 4), HALF)
        addresses.add(array.ctypes.data)
        del array
    assert len(addresses) == 1


def test_what_is_too_small_is_given_back():
    memory = RecycledMemory()
    for rows in (1, 2, 4, 8):
        memory.empty((rows, 4), HALF)
    assert sum(buffer.nbytes for buffer in memory._buffers) == 8 * 4 * 2


def test_another_process_begins_anew():
    memory = RecycledMemory()
    memory.empty((4, 4), HALF)
    assert pickle.loads(pickle.dumps(memory))._buffers == []
