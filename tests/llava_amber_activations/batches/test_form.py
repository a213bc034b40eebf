"""What becomes of a batch's tensors: their dtype, and where they go."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from builder.build import build
from llava_amber_activations import Activations, ActivationsError, activation_batches
from llava_amber_activations.batches.on_device import on_device
from llava_amber_activations.vectors import gather
from llava_amber_activations.vectors.batch import Batch
from llava_amber_activations.vectors.held_rows import rows_of_block


@pytest.fixture(scope="module")
def half(make_store, tmp_path_factory):
    """A float16 data set, and its store."""
    path = tmp_path_factory.mktemp("form")
    store = make_store(path / "store", positions="all", store_dtype="float16")
    build(store, path / "dataset", configs=["all_layers"])
    return path / "dataset"


@pytest.mark.parametrize("dtype", [torch.float32, "float32", torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["float16", "float32"])
@pytest.mark.parametrize("prepared", [False, True])
def test_converted_as_torch_does(half, folder, dtype, source, prepared, tmp_path, monkeypatch):
    """Each value is what `tensor.to` makes of it, pieces of a few rows at a time; integers stay."""
    monkeypatch.setattr(gather, "_CONVERTED_BYTES", 1000)
    acts = Activations(half if source == "float16" else folder)
    layer = acts.dataset(4, 2, streaming=not prepared, cache_dir=tmp_path)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    plain = list(activation_batches(layer, 50, shuffle=True))
    found = list(activation_batches(layer, 50, shuffle=True, dtype=dtype))
    assert len(found) == len(plain)
    for one, other in zip(found, plain, strict=True):
        assert one["sample"].dtype == torch.int32
        for name in ("x", "targets"):
            assert one[name].dtype == wanted and one[name].shape == other[name].shape
            assert torch.equal(one[name], other[name].to(wanted))


def test_hooks_too(half):
    batches = Activations(half).hook_batches([3], batch_size=50, dtype=torch.float32)
    assert {tensor.dtype for batch in batches for tensor in batch.values()} == {torch.float32}


def test_a_number_that_float16_does_not_hold():
    """It is said, and does not become infinity."""
    large = np.ones((4, 8), np.float32)
    large[2, 3] = 70000
    held = rows_of_block({}, large[:, None], {"x": (8,)})
    rows = np.arange(4)
    whole = gather.BatchGather(in_parallel=True, dtype=torch.bfloat16).batch([(held, rows)])
    assert torch.isfinite(whole["x"]).all()
    with pytest.raises(ActivationsError, match="1 vectors of a batch hold numbers beyond float16"):
        gather.BatchGather(in_parallel=True, dtype=torch.float16).batch([(held, rows)])
    # What was infinite before is as it was.
    large[2, 3] = np.inf
    kept = gather.BatchGather(in_parallel=True, dtype=torch.float16).batch([(held, rows)])
    assert torch.isinf(kept["x"][2, 3])


@pytest.mark.parametrize("dtype", ["int8", torch.int32, "half a float", torch.float64, 3])
def test_a_dtype_that_vectors_cannot_have(folder, dtype):
    with pytest.raises(ActivationsError, match="dtype is one of float32, float16, bfloat16"):
        Activations(folder).batches(4, 1, dtype=dtype)


def test_a_device_that_is_not_there(folder):
    with pytest.raises(ActivationsError, match="cannot go to device 'nowhere'"):
        Activations(folder).batches(4, 1, device="nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_that_is_not_there(folder):
    with pytest.raises(ActivationsError, match="cannot go to device 'cuda'"):
        Activations(folder).batches(4, 1, device="cuda")
    with pytest.raises(ActivationsError, match="torch sees none here"):
        Activations(folder).batches(4, 1, pin_memory=True)


def test_the_cpu_is_a_device(folder):
    batches = Activations(folder).batches(4, 1, batch_size=50, device="cpu")
    assert sum(len(batch["x"]) for batch in batches) == batches.n_rows


def test_another_device(folder):
    """The only other one that every machine has; it keeps shapes, dtypes and nothing else."""
    acts = Activations(folder)
    plain = list(acts.batches(4, 1, batch_size=50))
    found = list(acts.batches(4, 1, batch_size=50, device="meta"))
    assert [len(batch["x"]) for batch in found] == [len(batch["x"]) for batch in plain]
    assert {tensor.device.type for batch in found for tensor in batch.values()} == {"meta"}


def test_the_state_is_of_the_batch_that_was_given(folder):
    """Not of the one that is on its way."""
    acts = Activations(folder)
    batches = acts.batches(4, 1, batch_size=20, device="meta")
    iterator = iter(batches)
    next(iterator)
    next(iterator)
    assert batches.state_dict()["rows_done"] == 40


def test_a_worker_has_no_device(folder):
    batches = Activations(folder).batches(4, 1, device="meta")
    loader = DataLoader(batches, batch_size=None, num_workers=1)
    with pytest.raises(ActivationsError, match="move each batch in the loop"):
        next(iter(loader))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(folder):
    """Bits, order and the state; one batch is on its way while another is used."""
    acts = Activations(folder)
    options = {"batch_size": 20, "shuffle": True, "dtype": torch.float32}
    plain = list(acts.batches(4, 2, **options))
    moved = acts.batches(4, 2, device="cuda", **options)
    for number, batch in enumerate(moved):
        assert moved.state_dict()["rows_done"] == sum(len(b["x"]) for b in plain[: number + 1])
        for name, tensor in batch.items():
            assert tensor.is_cuda and torch.equal(tensor.cpu(), plain[number][name])
    pinned = next(iter(acts.batches(4, 2, pin_memory=True, **options)))
    assert all(tensor.is_pinned() for tensor in pinned.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_slow_consumer_finds_its_batch(folder):
    """Memory of a batch that is still used on the GPU is not given to the next one."""
    rows = [Batch(x=torch.full((256, 4096), float(number))) for number in range(30)]
    sums = []
    for _, batch in on_device(iter(enumerate(rows)), torch.device("cuda"), pin_memory=False):
        for _ in range(20):
            torch.matmul(batch["x"], batch["x"].T)
        sums.append(batch["x"].mean())
    assert [round(float(each)) for each in sums] == list(range(30))
