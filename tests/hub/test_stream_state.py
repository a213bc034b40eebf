"""Shuffled streams: every row once, in an order that can be left and taken up again anywhere."""

from itertools import islice

import pytest
import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from llava_amber_activations import ActivationsError, activation_batches, load_activations

BATCH = 24


@pytest.fixture
def stream(hub, pushed):
    """Layer 5 of the pushed repo: 200 rows in several shards and row groups."""
    return load_activations(pushed, layer=5, n_targets=1, streaming=True)


def samples_of(batches):
    return [sample for batch in batches for sample in batch["sample"].tolist()]


def test_shuffled_stream_holds_every_row_once(stream, narrow_vectors):
    """Each row comes once, with its own vectors, and not in the order of the shards."""
    seen = []
    for batch in activation_batches(stream, batch_size=BATCH, shuffle=True, seed=3):
        for row, sample in enumerate(batch["sample"].tolist()):
            assert torch.equal(batch["x"][row], torch.from_numpy(narrow_vectors["x_05"][sample]))
            target = torch.from_numpy(narrow_vectors["mlp_out_06"][sample])
            assert torch.equal(batch["targets"][row, 0], target)
            seen.append(sample)
    assert sorted(seen) == list(range(200))
    assert seen != sorted(seen)


def test_mixes_across_row_groups(stream, monkeypatch):
    """With a window of two row groups, a batch holds rows of more than one and far ones too.

    Only the first window is a single row group, so that its rows come soon.
    """
    monkeypatch.setattr("llava_amber_activations.streams.shard_stream._WINDOW_ROWS", 100)
    batches = list(activation_batches(stream, batch_size=BATCH, shuffle=True, seed=0))
    groups = [{sample // 64 for sample in batch["sample"].tolist()} for batch in batches]
    assert len(groups[0]) == 1
    assert all(len(of_batch) > 1 for of_batch in groups[64 // BATCH : -1])
    starts = [min(batch["sample"].tolist()) for batch in batches]
    assert starts != sorted(starts), "row groups must not come in their own order"


def test_seed_and_epoch_decide_the_order(stream):
    def order(seed, epoch=0):
        batches = activation_batches(stream, batch_size=BATCH, shuffle=True, seed=seed)
        batches.set_epoch(epoch)
        return samples_of(batches)

    assert order(0) == order(0)
    orders = [order(0), order(1), order(0, epoch=1), order(1, epoch=1)]
    assert len({tuple(samples) for samples in orders}) == 4


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("done", [0, 1, 4, 8, 9])
def test_state_is_taken_up_where_it_was_left(stream, monkeypatch, shuffle, done):
    """After any number of batches, also across windows: no row is dropped and none repeated."""
    monkeypatch.setattr("llava_amber_activations.streams.shard_stream._WINDOW_ROWS", 60)

    def batches():
        return activation_batches(stream, batch_size=BATCH, shuffle=shuffle, seed=7)

    whole = samples_of(batches())
    first = batches()
    head = samples_of(islice(first, done))
    state = first.state_dict()
    second = batches()
    second.load_state_dict(state)
    assert head + samples_of(second) == whole
    following = batches()
    following.set_epoch(1)
    assert samples_of(second) == samples_of(following), "the next epoch begins at the beginning"


def test_resuming_does_not_fetch_what_was_done(hub, stream, monkeypatch):
    monkeypatch.setattr("llava_amber_activations.streams.shard_stream._WINDOW_ROWS", 60)
    batches = activation_batches(stream, batch_size=50, shuffle=True, seed=1)
    hub.reset_counts()
    samples_of(batches)
    whole = hub.bytes_sent("all_layers/")
    batches.load_state_dict({**batches.state_dict(), "rows_done": 195})
    hub.reset_counts()
    assert len(samples_of(batches)) == 5
    assert hub.bytes_sent("all_layers/") < 0.5 * whole


def test_state_of_other_batches_is_refused(stream):
    state = activation_batches(stream, batch_size=BATCH, seed=0).state_dict()
    other = activation_batches(stream, batch_size=BATCH, seed=1)
    with pytest.raises(ActivationsError, match=r"another seed \(1, not 0\)"):
        other.load_state_dict(state)


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_workers_share_the_rows(stream, shuffle):
    """A plain DataLoader with two workers: every row once."""
    batches = activation_batches(stream, batch_size=BATCH, shuffle=shuffle, seed=2)
    loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(samples_of(loader)) == list(range(200))


def test_state_with_two_workers(stream):
    """Saved in the middle and loaded into a new loader: the rest follows, each row once."""

    def loader():
        batches = activation_batches(stream, batch_size=BATCH, shuffle=True, seed=5)
        return StatefulDataLoader(
            batches, batch_size=None, num_workers=2, multiprocessing_context="spawn"
        )

    whole = samples_of(loader())
    assert sorted(whole) == list(range(200))
    first = loader()
    iterator = iter(first)
    head = samples_of(islice(iterator, 3))
    state = first.state_dict()
    del iterator
    second = loader()
    second.load_state_dict(state)
    assert head + samples_of(second) == whole


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_of_load_dataset(hub, pushed, shuffle):
    """The stream that `datasets` alone opens can be left and taken up too."""
    stream = load_dataset(pushed, "L5", split="L5", streaming=True)

    def batches():
        return activation_batches(stream, batch_size=BATCH, shuffle=shuffle, seed=7)

    whole = samples_of(batches())
    assert sorted(whole) == list(range(200))
    first = batches()
    iterator = iter(first)
    head = samples_of(islice(iterator, 3))
    state = first.state_dict()
    list(iterator)
    second = batches()
    second.load_state_dict(state)
    assert head + samples_of(second) == whole
    loader = DataLoader(batches(), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(samples_of(loader)) == list(range(200))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_prepared_layer(hub, pushed, tmp_path, shuffle):
    """Prepared datasets: the same promises, and two workers give the batches of one process."""
    layer = load_activations(pushed, layer=5, n_targets=1, cache_dir=tmp_path)

    def batches():
        return activation_batches(layer, batch_size=BATCH, shuffle=shuffle, seed=7)

    whole = samples_of(batches())
    assert sorted(whole) == list(range(200))
    first = batches()
    head = samples_of(islice(first, 5))
    second = batches()
    second.load_state_dict(first.state_dict())
    assert head + samples_of(second) == whole
    loader = DataLoader(batches(), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert samples_of(loader) == whole
