"""Saved states: what is none of these batches is not gone on from, and the message says why."""

from itertools import islice

import pytest
from torch.utils.data import DataLoader

from llava_amber_activations import (
    ActivationsError,
    activation_batches,
    load_activations,
    open_layer,
)

BATCH = 16


def test_the_state_of_workers_is_not_known_here(layer):
    """It would say that no row is done."""
    batches = activation_batches(layer, BATCH)
    loader = DataLoader(batches, batch_size=None, num_workers=2)
    list(islice(loader, 2))
    with pytest.raises(ActivationsError, match=r"StatefulDataLoader, or use num_workers=0"):
        batches.state_dict()
    list(islice(batches, 2))
    assert batches.state_dict()["rows_done"] == 2 * BATCH, "now it was this process"


def state_after(batches, n):
    list(islice(batches, n))
    return batches.state_dict()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows_done": -7}, "rows_done is -7, not a number of 0 or more"),
        ({"rows_done": 10**9}, "1000000000 rows are done .*, and the dataset has"),
        ({"rows_done": "32"}, "rows_done is '32'"),
        ({"rows_done": True}, "rows_done is True"),
        ({"rows_done": None}, "rows_done is None"),
        ({"rows_done": 2.0}, "rows_done is 2.0"),
        ({"epoch": -1}, "epoch is -1"),
        ({"epoch": 2**70}, "epoch is"),
        ({"seed": 1}, r"another seed \(0, not 1\)"),
        ({"seed": False}, r"another seed \(0, not False\)"),
        ({"rank": 1, "world_size": 2}, r"another rank \(0, not 1\), world_size \(1, not 2\)"),
        ({"n_workers": 2}, "another n_workers"),
        ({"dataset": "0" * 16}, "another dataset"),
        ({"surprise": 1}, "another surprise"),
    ],
    ids=str,
)
def test_states_that_are_none(layer, changes, says):
    """What was changed in a file, or is of other batches, is not gone on from."""
    batches = activation_batches(layer, BATCH, shuffle=True)
    state = state_after(batches, 2)
    with pytest.raises(ActivationsError, match=says):
        activation_batches(layer, BATCH, shuffle=True).load_state_dict({**state, **changes})


def test_states_without_a_dataset(layer):
    """The first release's: nothing says of which dataset they are."""
    batches = activation_batches(layer, BATCH)
    old = {"seed": 0, "batch_size": BATCH, "worker": 0, "n_workers": 1, "epoch": 0, "rows_done": 16}
    with pytest.raises(ActivationsError, match="of an older release"):
        batches.load_state_dict(old)
    for wrong in (None, [], "state", {}):
        with pytest.raises(ActivationsError, match="saved state"):
            batches.load_state_dict(wrong)


@pytest.mark.parametrize(
    "other",
    [{"shuffle": False}, {"batch_size": 8}, {"drop_last": True}, {"rank": 0, "world_size": 2}],
    ids=str,
)
def test_states_of_other_batches(layer, other):
    state = state_after(activation_batches(layer, BATCH, shuffle=True), 2)
    batches = activation_batches(layer, **{"batch_size": BATCH, "shuffle": True, **other})
    with pytest.raises(ActivationsError, match=f"another {[*other][-1]}|another rank|, world_size"):
        batches.load_state_dict(state)


def test_states_of_other_layers(folder, prepared, all_dataset, tmp_path):
    """Another layer, other targets, other shards of the same rows, another way of opening."""
    state = state_after(activation_batches(open_layer(folder, 4, 1), BATCH), 2)
    others = {
        "layer": open_layer(folder, 9, 1),
        "n_targets": open_layer(folder, 4, 2),
        "first_target": open_layer(folder, 4, 1, first_target=0),
        "dataset": open_layer(all_dataset, 4, 1),
    }
    for key, stream in others.items():
        with pytest.raises(ActivationsError, match=f"another {key} "):
            activation_batches(stream, BATCH).load_state_dict(state)
    with pytest.raises(ActivationsError, match="another dataset"):
        activation_batches(prepared, BATCH).load_state_dict(state)
    state = state_after(activation_batches(prepared, BATCH), 2)
    other = load_activations(folder, 9, 1, cache_dir=tmp_path)
    with pytest.raises(ActivationsError, match="another dataset"):
        activation_batches(other, BATCH).load_state_dict(state)
    same = load_activations(folder, 4, 1, cache_dir=tmp_path)
    activation_batches(same, BATCH).load_state_dict(state)


def test_a_state_that_workers_would_take(layer):
    """Loaded here, it is not each of two workers' own: it would skip its rows twice."""
    batches = activation_batches(layer, BATCH)
    batches.load_state_dict(state_after(activation_batches(layer, BATCH), 2))
    loader = DataLoader(batches, batch_size=None, num_workers=2)
    with pytest.raises(ActivationsError, match="another n_workers"):
        next(iter(loader))
