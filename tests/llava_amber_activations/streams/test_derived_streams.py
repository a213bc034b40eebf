"""Streams that `datasets` derives from a layer's: the right rows, from the shards where it can."""

import pytest
import torch
from datasets import Features, List, Value
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from builder.build import build
from llava_amber_activations import (
    ActivationsError,
    LlavaAmberActivations,
    activation_batches,
    load_activations,
)

LAYER = 4


@pytest.fixture(scope="module")
def every_store(make_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("derived") / "store"
    return make_store(folder, positions="all", store_dtype="float16")


@pytest.fixture(scope="module")
def folder(every_store, tmp_path_factory):
    """Several shards, of several row groups each."""
    folder = tmp_path_factory.mktemp("derived") / "dataset"
    build(every_store, folder, max_shard_size="300kB")
    assert len(list((folder / "all_layers").iterdir())) > 2
    return folder


@pytest.fixture(scope="module")
def x(every_store):
    """x of every row, in order, from the chunks by safetensors."""
    paths = sorted((every_store / "chunks").iterdir())
    return torch.cat([load_file(path)[f"x_{LAYER:02d}"] for path in paths])


@pytest.fixture
def stream(folder):
    return load_activations(folder, LAYER, 2, streaming=True)


def rows_of(batches):
    return torch.cat([batch["x"] for batch in batches])


def from_shards(stream):
    """Whether a layer's own order is what its batches are in, as their states say."""
    return "layer" in activation_batches(stream).state_dict()


def same_rows(found, expected):
    """Whether the rows are the same ones, in any order."""
    return sorted(map(bytes, found.numpy())) == sorted(map(bytes, expected.numpy()))


CUTS = {
    "take": (lambda s: s.take(70), slice(0, 70)),
    "take of a few": (lambda s: s.take(3), slice(0, 3)),
    "take of none": (lambda s: s.take(0), slice(0, 0)),
    "take of more than there are": (lambda s: s.take(10**9), slice(None)),
    "skip": (lambda s: s.skip(70), slice(70, None)),
    "skip of none": (lambda s: s.skip(0), slice(None)),
    "skip of more than there are": (lambda s: s.skip(10**9), slice(0, 0)),
    "take of a skip": (lambda s: s.skip(33).take(70), slice(33, 103)),
    "skip of a take": (lambda s: s.take(100).skip(37), slice(37, 100)),
    "take of a take": (lambda s: s.take(20).take(90), slice(0, 20)),
    "skip past a take": (lambda s: s.take(20).skip(30), slice(0, 0)),
    "skip of a skip": (lambda s: s.skip(20).skip(90), slice(110, None)),
    "with_format": (lambda s: s.with_format("torch").take(9), slice(0, 9)),
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_rows_of_a_cut_stream(stream, x, cut, shuffle):
    """In order, or mixed among themselves: those rows and no others, from the shards."""
    derive, rows = CUTS[cut]
    derived = derive(stream)
    assert from_shards(derived)
    batches = list(activation_batches(derived, 16, shuffle=shuffle, seed=1))
    if not len(x[rows]):
        assert batches == []
        return
    found = rows_of(batches)
    assert same_rows(found, x[rows]) if shuffle else torch.equal(found, x[rows])
    assert {len(batch["x"]) for batch in batches[:-1]} <= {16}


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_and_workers_share_a_cut_stream(stream, x, shuffle):
    derived = stream.skip(5).take(90)
    parts = [
        activation_batches(derived, 8, shuffle=shuffle, rank=rank, world_size=2) for rank in (0, 1)
    ]
    assert same_rows(torch.cat([rows_of(part) for part in parts]), x[5:95])
    batches = activation_batches(derived, 8, shuffle=shuffle)
    loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert same_rows(rows_of(loader), x[5:95])


def test_a_state_of_a_cut_stream(stream, x):
    """It goes on where it was left, and is none of other rows."""
    first = activation_batches(stream.skip(40).take(60), 16)
    iterator = iter(first)
    next(iterator), next(iterator)
    state = first.state_dict()
    second = activation_batches(stream.skip(40).take(60), 16)
    second.load_state_dict(state)
    assert torch.equal(rows_of(second), x[72:100])
    for other in (stream, stream.skip(40), stream.take(100)):
        with pytest.raises(ActivationsError, match="another rows"):
            activation_batches(other, 16).load_state_dict(state)


def test_a_take_reads_no_further(stream, folder, x):
    """Not even the footers of the shards behind it."""
    for path in sorted((folder / "all_layers").iterdir())[1:]:
        path.rename(path.with_suffix(".away"))
    try:
        assert torch.equal(rows_of(activation_batches(stream.take(10), 4)), x[:10])
    finally:
        for path in (folder / "all_layers").glob("*.away"):
            path.rename(path.with_suffix(".parquet"))


def test_shards_and_row_groups(stream, x):
    """`shard` and `reshard` name the files and row groups that they leave."""
    n_shards = stream.num_shards
    shards = [stream.shard(num_shards=n_shards, index=index) for index in range(n_shards)]
    assert all(map(from_shards, shards))
    assert torch.equal(torch.cat([rows_of(activation_batches(each, 16)) for each in shards]), x)
    cut = stream.reshard()
    assert cut.num_shards > n_shards and from_shards(cut)
    assert torch.equal(rows_of(activation_batches(cut, 16)), x)
    halves = [cut.shard(num_shards=2, index=index) for index in (0, 1)]
    assert torch.equal(torch.cat([rows_of(activation_batches(each, 16)) for each in halves]), x)
    states = [activation_batches(each, 16).state_dict() for each in (stream, *shards, *halves)]
    assert len({state["dataset"] for state in states}) == len(states)
    first = next(iter(activation_batches(halves[1].take(3), 16)))
    assert torch.equal(first["x"], rows_of(activation_batches(halves[1], 16))[:3])


def test_what_datasets_reads(stream, x):
    """Other rows, columns or types: `datasets` makes them."""
    samples = stream.filter(lambda row: row["sample"] == 1)
    assert not from_shards(samples)
    ours = activation_batches(stream, 16)
    expected = torch.cat([batch["x"][batch["sample"] == 1] for batch in ours])
    assert 0 < len(expected) < len(x)
    assert torch.equal(rows_of(activation_batches(samples, 16)), expected)

    columns = stream.select_columns(["x", "sample"])
    assert not from_shards(columns)
    batches = list(activation_batches(columns.take(20), 16))
    assert torch.equal(rows_of(batches), x[:20]) and set(batches[0]) == {"x", "sample"}

    def far(row):
        return {"position": row["position"] + 1000}

    mapped = stream.map(far, features=stream.features)
    assert not from_shards(mapped)
    batches = list(activation_batches(mapped.take(20), 16))
    assert torch.equal(rows_of(batches), x[:20]) and batches[0]["position"].min() >= 1000
    with pytest.raises(ActivationsError, match=r"x holds lists of any length.*features=dataset"):
        rows_of(activation_batches(stream.map(far), 16))

    shuffled = stream.shuffle(seed=0, buffer_size=50)
    assert not from_shards(shuffled)
    found = rows_of(activation_batches(shuffled, 16))
    assert same_rows(found, x) and not torch.equal(found, x)


def test_a_cast_is_seen(stream, x):
    """It changes nothing of a stream but the features."""
    features = {**stream.features, "x": List(Value("float32"), length=x.shape[1])}
    batches = activation_batches(stream.cast(Features(features)), 16)
    found = rows_of(batches)
    assert found.dtype == torch.float32 and torch.equal(found, x.float())


def test_the_builders_own_stream(folder, x):
    """Without a manifest: its address is all that is known of a shard."""
    builder = LlavaAmberActivations(
        dataset_name="amber", data_files=str(folder / "all_layers" / "*.parquet"), n_targets=2
    )
    stream = builder.as_streaming_dataset(split=f"L{LAYER}")
    assert from_shards(stream)
    assert torch.equal(rows_of(activation_batches(stream, 16)), x)
    assert torch.equal(rows_of(activation_batches(stream.skip(100).take(9), 4)), x[100:109])
