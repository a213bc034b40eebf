"""Batches: dtypes, shapes, order, every row once and each with its own vectors."""

import pytest
import torch
from datasets import load_dataset
from safetensors.torch import load_file

from builder.build import build
from llava_amber_activations import ActivationsError, activation_batches, load_activations


@pytest.fixture(scope="module")
def half_store(make_store, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "store"
    return make_store(path, positions="all", store_dtype="float16")


@pytest.fixture(scope="module")
def half_dataset(half_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half") / "dataset"
    build(half_store, folder, max_shard_size="300kB")
    return folder


@pytest.fixture(scope="module")
def by_place(half_store):
    """(sample, position) → x and the two targets of layer 4, from the chunks by safetensors."""
    rows = {}
    for path in sorted((half_store / "chunks").iterdir()):
        chunk = load_file(path)
        targets = torch.stack([chunk["mlp_out_05"], chunk["mlp_out_06"]], dim=1)
        places = zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True)
        for place, x, target in zip(places, chunk["x_04"], targets, strict=True):
            rows[place] = (x, target)
    return rows


@pytest.fixture(params=["prepared", "streamed", "load_dataset"])
def layer(request, half_dataset, tmp_path):
    if request.param == "load_dataset":
        return load_dataset(str(half_dataset), "L4", split="L4")
    streaming = request.param == "streamed"
    return load_activations(half_dataset, 4, 2, streaming=streaming, cache_dir=tmp_path)


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_keep_their_vectors(layer, by_place, shuffle):
    """Every row once; x, targets, sample and position belong together; float16, int32."""
    places = []
    for batch in activation_batches(layer, batch_size=50, shuffle=shuffle, seed=1):
        n = len(batch["sample"])
        assert batch["x"].shape == (n, 64) and batch["x"].dtype == torch.float16
        assert batch["targets"].shape[0] == n and batch["targets"].dtype == torch.float16
        for name in ("sample", "id", "position", "token_id"):
            assert batch[name].shape == (n,) and batch[name].dtype == torch.int32
        assert "image" not in batch
        for row in range(n):
            place = int(batch["sample"][row]), int(batch["position"][row])
            x, targets = by_place[place]
            assert torch.equal(batch["x"][row], x)
            assert torch.equal(batch["targets"][row, :2], targets)
            places.append(place)
    assert sorted(places) == sorted(by_place)
    assert (places == list(by_place)) is not shuffle


def test_sizes(layer, by_place):
    """Full batches and one remainder, which drop_last leaves out."""
    n = len(by_place)
    sizes = [len(batch["x"]) for batch in activation_batches(layer, batch_size=100)]
    assert sizes == [100] * (n // 100) + [n % 100]
    sizes = [len(b["x"]) for b in activation_batches(layer, batch_size=100, drop_last=True)]
    assert sizes == [100] * (n // 100)


def test_tensors_are_the_callers_own(layer, by_place):
    """Changing a batch in place neither ends the process nor changes the data."""
    for batch in activation_batches(layer, batch_size=64):
        batch["x"].mul_(0)
        batch["targets"].add_(1)
    first = next(iter(activation_batches(layer, batch_size=1)))
    assert torch.equal(first["x"][0], by_place[0, 0][0])


def test_order_is_the_seeds(half_dataset, tmp_path):
    layer = load_activations(half_dataset, 4, 1, cache_dir=tmp_path)

    def order(**options):
        batches = activation_batches(layer, batch_size=64, shuffle=True, **options)
        return [(b["sample"].tolist(), b["position"].tolist()) for b in batches]

    assert order(seed=0) == order(seed=0)
    assert order(seed=0) != order(seed=1)


def test_what_is_no_split(half_dataset):
    with pytest.raises(ActivationsError, match=r'one split, not a DatasetDict.*dataset\["L5"\]'):
        activation_batches(load_dataset(str(half_dataset)))
    with pytest.raises(ActivationsError, match="batch_size must be at least 1"):
        activation_batches(load_dataset(str(half_dataset), "L0", split="L0"), batch_size=0)
