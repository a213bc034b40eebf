"""The pipeline: workers, batches that do not fit, batches of similar length, errors behind."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from capture.model.load import CaptureModel, load_model
from capture.passes.preparation import plan_batches
from capture.passes.prompts import make_prompts
from capture.samples.queries import read_queries
from capture.sink import chunk_sink
from llava_amber_activations import ActivationsError


def batch_size_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["chunk"])["batch_size"]


def chunks_of(store):
    return {path.name: path.read_bytes() for path in sorted((store / "chunks").iterdir())}


def test_workers_change_nothing(make_store, all_store, tmp_path):
    """Two processes that read ahead: the same bytes."""
    store = make_store(tmp_path / "store", positions="all", num_workers=2)
    assert chunks_of(store) == chunks_of(all_store)


@pytest.fixture
def small_memory(monkeypatch):
    """A device on which at most two samples fit; returns the sizes that were tried."""
    tried = []
    original = CaptureModel.on_device

    def on_device(self, inputs):
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("no memory")
        return original(self, inputs)

    monkeypatch.setattr(CaptureModel, "on_device", on_device)
    return tried


def test_auto_halves_until_it_fits(make_store, small_memory, tmp_path):
    """From eight samples to two; chunks that were written stay, and the values are right."""
    store = make_store(tmp_path / "auto", batch_size=None, chunk_samples=4)
    assert small_memory == [4, 2, 2, 2, 2]
    small_memory.clear()
    two = make_store(tmp_path / "two", batch_size=2, chunk_samples=4)
    assert small_memory == [2, 2, 2, 2]
    assert chunks_of(store) == chunks_of(two)


def test_auto_says_what_each_chunk_was_made_with(make_store, tmp_path, monkeypatch):
    """Undisturbed, the bytes of a number; where memory runs out on the way, each chunk its own."""
    options = {"chunk_samples": 4, "batch_size": None}
    undisturbed = make_store(tmp_path / "undisturbed", **options)
    four = make_store(tmp_path / "four", **{**options, "batch_size": 4})
    assert chunks_of(undisturbed) == chunks_of(four)
    tried = []
    original = CaptureModel.on_device

    def on_device(self, inputs):
        tried.append(len(inputs["input_ids"]))
        if len(tried) == 2:
            raise torch.OutOfMemoryError("no memory")
        return original(self, inputs)

    monkeypatch.setattr(CaptureModel, "on_device", on_device)
    halved = make_store(tmp_path / "halved", **options)
    assert tried == [4, 4, 2, 2]
    first, second = sorted((halved / "chunks").iterdir())
    assert (batch_size_of(first), batch_size_of(second)) == (4, 2)
    assert first.read_bytes() == (four / "chunks" / first.name).read_bytes()


def test_a_size_that_does_not_fit_is_said(make_store, small_memory, tmp_path):
    with pytest.raises(ActivationsError, match=r"5 samples at once do not fit.*or auto"):
        make_store(tmp_path / "store", batch_size=5, chunk_samples=8)


def test_not_even_one_fits(make_store, tmp_path, monkeypatch):
    def on_device(self, inputs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(CaptureModel, "on_device", on_device)
    with pytest.raises(ActivationsError, match=r"1 samples at once .* none does"):
        make_store(tmp_path / "store", batch_size=None)


def test_batches_are_of_similar_length(tiny_llava, query_file):
    """Within a chunk, the longest prompts share a batch; every sample is in one batch."""
    queries, _ = read_queries(query_file)
    model = load_model(str(tiny_llava), dtype="float32", device=torch.device("cpu"))
    plans = plan_batches(0, queries, make_prompts(queries, model, None), 3)
    lengths = [[len(query.query) for query in plan.queries] for plan in plans]
    assert [len(batch) for batch in lengths] == [3, 3, 2]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat)
    assert sorted(q.sample for plan in plans for q in plan.queries) == list(range(8))


def test_an_error_of_the_writer_is_not_lost(make_store, tmp_path, monkeypatch):
    """A disk that is full when a chunk is written behind stops the run."""

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunk_sink, "write_chunk", full)
    with pytest.raises(OSError, match="No space left"):
        make_store(tmp_path / "store")
    assert not (tmp_path / "store" / "samples.jsonl").exists()


# torch's own call, when it first compiles.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a CPU")
def test_compiled(make_store, last_store, tmp_path):
    """The same values, from one graph for all layers of each kind, whatever the batch's length."""
    torch._dynamo.reset()
    counters.clear()
    store = make_store(tmp_path / "store", compile=True)
    assert 2 <= counters["stats"]["unique_graphs"] <= 8
    for path in sorted((last_store / "chunks").iterdir()):
        plain, compiled = load_file(path), load_file(store / "chunks" / path.name)
        for name, tensor in plain.items():
            assert torch.allclose(compiled[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
    # What a compiled norm gives is what the norm gives, to rounding.
    assert (store / "norms.safetensors").exists()


def test_device_map(make_store, last_store, tmp_path):
    """A model that accelerate places gives the same bytes; here every layer is on the CPU."""
    store = make_store(tmp_path / "store", device_map="auto")
    assert chunks_of(store) == chunks_of(last_store)
