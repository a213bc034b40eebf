"""Chunks on their way to the disk: how many wait, and what happens when one cannot be written."""

import threading
from types import SimpleNamespace

import pytest
import torch

from capture.sink import chunk_sink as module
from capture.sink.chunk_sink import CapturedChunk, chunk_sink
from llava_amber_activations.errors import ActivationsError

MODEL = SimpleNamespace()


def chunk_of(number, nbytes):
    batch = SimpleNamespace(vectors=SimpleNamespace(nbytes=nbytes))
    return CapturedChunk(number, [], [batch, SimpleNamespace(vectors=None)], 8)


@pytest.fixture
def writing(monkeypatch):
    """What is written, in its order; each waits until `go_on` is released once more."""
    state = SimpleNamespace(written=[], go_on=threading.Semaphore(0), fails_at=None)

    def write(store, chunk, model, dtype, layers, extra_columns):
        assert state.go_on.acquire(timeout=60)
        if chunk.number == state.fails_at:
            raise ActivationsError(f"chunk {chunk.number} cannot be written")
        state.written.append(chunk.number)

    monkeypatch.setattr(module, "_write", write)
    return state


def put_all(writing, chunks, tmp_path):
    """Put chunks from a thread, and return how many were taken before anything was written."""
    taken, done = [], threading.Event()

    def run():
        with chunk_sink(tmp_path, MODEL, torch.float16) as sink:
            for chunk in chunks:
                sink.put(chunk)
                taken.append(chunk.number)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    done.wait(1)
    first = len(taken)
    for _ in chunks:
        writing.go_on.release()
    thread.join(60)
    assert done.is_set() and writing.written == [chunk.number for chunk in chunks]
    return first


def test_two_wait_at_most(writing, tmp_path):
    assert put_all(writing, [chunk_of(n, 10) for n in range(6)], tmp_path) == module.MOST_CHUNKS


def test_no_more_wait_than_there_is_room_for(writing, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 15)
    assert put_all(writing, [chunk_of(n, 10) for n in range(4)], tmp_path) == 1


def test_one_that_is_larger_than_all_room_goes_alone(writing, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 5)
    assert put_all(writing, [chunk_of(n, 10) for n in range(3)], tmp_path) == 1


@pytest.mark.parametrize("n_chunks", [2, 5])
def test_after_one_that_fails_none_is_written(writing, tmp_path, n_chunks):
    """Whether it is noticed when the next one comes, or at the end."""
    writing.fails_at = 0
    for _ in range(n_chunks):
        writing.go_on.release()
    refused = pytest.raises(ActivationsError, match="chunk 0 cannot be written")
    with refused, chunk_sink(tmp_path, MODEL, torch.float16) as sink:
        for number in range(n_chunks):
            sink.put(chunk_of(number, 10))
    assert not set(writing.written) - {1}
