"""Epochs one after the other, in this process and in workers of every kind; DataLoaders."""

import copy
import pickle
import random
import resource
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from llava_amber_activations import ActivationsError, activation_batches, open_layer
from llava_amber_activations.batches.epochs import Epochs

BATCH = 16


def places(batches):
    return [
        place
        for batch in batches
        for place in zip(batch["sample"].tolist(), batch["position"].tolist(), strict=True)
    ]


def orders(layer, epochs, **options):
    """The orders of some epochs, each of batches of its own: what every other way must give."""
    found = []
    for epoch in epochs:
        batches = activation_batches(layer, BATCH, shuffle=True, **options)
        batches.set_epoch(epoch)
        found.append(places(batches))
    return found


def loader_orders(layer, epochs, n_workers, **options):
    """The same by a loader that is used once for each epoch."""
    found = []
    for epoch in epochs:
        batches = activation_batches(layer, BATCH, shuffle=True, **options)
        batches.set_epoch(epoch)
        found.append(places(DataLoader(batches, batch_size=None, num_workers=n_workers)))
    return found


def test_each_iteration_is_the_next_epoch(layer):
    batches = activation_batches(layer, BATCH, shuffle=True)
    expected = orders(layer, range(5))
    assert len({tuple(order) for order in expected}) == 5
    assert [places(batches) for _ in range(3)] == expected[:3]
    batches.set_epoch(1)
    assert [places(batches), places(batches)] == expected[1:3]
    next(iter(batches))
    assert places(batches) == expected[4], "one that was left in the middle counts"


@pytest.mark.parametrize(
    ("kind", "persistent"),
    [("fork", False), ("fork", True), ("spawn", True), ("stateful", False), ("stateful", True)],
)
def test_epochs_of_workers(layer, kind, persistent):
    """set_epoch reaches workers that live on; without it each epoch follows the last."""
    batches = activation_batches(layer, BATCH, shuffle=True)
    loader = (StatefulDataLoader if kind == "stateful" else DataLoader)(
        batches,
        batch_size=None,
        num_workers=2,
        persistent_workers=persistent,
        multiprocessing_context="fork" if kind == "stateful" else kind,
    )
    expected = loader_orders(layer, range(5), 2)
    assert len({tuple(order) for order in expected}) == 5
    assert [places(loader), places(loader)] == expected[:2]
    batches.set_epoch(4)
    assert places(loader) == expected[4]
    batches.set_epoch(2)
    list(islice(loader, 1))
    assert places(loader) == expected[3], "one that was left in the middle counts"


def test_a_generator_seeded_alike(layer):
    """Whoever seeds torch before each epoch still has another order in each."""
    batches = activation_batches(layer, BATCH, shuffle=True)
    loader = DataLoader(batches, batch_size=None, num_workers=2)
    found = []
    for _ in range(3):
        torch.manual_seed(5)
        found.append(places(loader))
    assert found == loader_orders(layer, range(3), 2)


def test_workers_that_never_began(monkeypatch):
    """One worker of an iteration that was left begins late, or never: the next one is one epoch."""
    info = type("Info", (), {})

    def as_worker(number, seed):
        worker = info()
        worker.id, worker.num_workers, worker.seed = number, 2, seed + number
        monkeypatch.setattr(
            "llava_amber_activations.batches.epochs.get_worker_info", lambda: worker
        )

    epochs = Epochs()

    def begin(number, seed, of=None):
        as_worker(number, seed)
        # A forked worker: the table is shared, the count of what it has begun is its own.
        mine = of or pickle.loads(pickle.dumps(epochs))
        mine._shared = epochs._shared
        return mine.begin()

    assert begin(0, 10) == 0
    assert [begin(0, 20), begin(1, 20)] == [1, 1]
    assert begin(1, 30) == 2
    epochs.set(7)
    assert begin(0, 30) == 2, "it began late, after set_epoch: its sibling's epoch is its own"
    assert [begin(1, 40), begin(0, 40)] == [7, 7]
    assert [begin(0, 40), begin(1, 40)] == [8, 8], "the seed comes again"


def test_any_processes(monkeypatch):
    """Two persistent workers in random turns agree about every iteration."""
    epochs = Epochs()
    workers = []
    for _ in range(2):
        worker = pickle.loads(pickle.dumps(epochs))
        worker._shared = epochs._shared
        workers.append(worker)
    info = type("Info", (), {})()
    monkeypatch.setattr("llava_amber_activations.batches.epochs.get_worker_info", lambda: info)
    generator = random.Random(0)
    expected = []
    for _ in range(200):
        expected.append(expected[-1] + 1 if expected else 0)
        if generator.random() < 0.3:
            expected[-1] = generator.randrange(50)
            epochs.set(expected[-1])
        turns = [0, 1]
        generator.shuffle(turns)
        for number in turns:
            info.id, info.num_workers, info.seed = number, 2, 99 + number
            assert workers[number].begin() == expected[-1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies(layer, copied):
    """A copy goes on from where it was made, by itself."""
    batches = activation_batches(layer, BATCH, shuffle=True)
    expected = orders(layer, range(3))
    assert places(batches) == expected[0]
    other = copied(batches)
    other.set_epoch(2)
    assert places(batches) == expected[1]
    assert places(other) == expected[2]
    assert places(DataLoader(copied(batches), batch_size=None)) == expected[2]


@pytest.mark.parametrize("n_workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_drop_last_with_workers(layer, n_workers, shuffle):
    """Whole batches, as many as one process has, each row once; and resumed all the same."""
    whole = places(activation_batches(layer, BATCH))
    assert len(whole) % BATCH

    def loader():
        batches = activation_batches(layer, BATCH, shuffle=shuffle, drop_last=True)
        return StatefulDataLoader(batches, batch_size=None, num_workers=n_workers)

    found = [places([batch]) for batch in loader()]
    assert [len(batch) for batch in found] == [BATCH] * (len(whole) // BATCH)
    rows = [place for batch in found for place in batch]
    assert len(set(rows)) == len(rows) and set(rows) <= set(whole)
    first = loader()
    iterator = iter(first)
    head = places(islice(iterator, 3))
    state = first.state_dict()
    del iterator
    second = loader()
    second.load_state_dict(state)
    assert head + places(second) == rows
    assert len(places(second)) == len(rows), "and the next epoch is whole"


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_data_loader_of_lists_of_one(layer, n_workers):
    """DataLoader(batches) gives the batches themselves, not [1, B, H]."""
    batches = activation_batches(layer, BATCH)
    loader = DataLoader(batches, num_workers=n_workers)
    expected = next(iter(batches))
    batch = next(iter(loader))
    assert isinstance(batch, dict) and batch.keys() == expected.keys()
    for name in expected:
        assert torch.equal(batch[name], expected[name])
    plain = next(iter(DataLoader(batches, batch_size=None)))
    assert isinstance(plain, dict) and plain["x"].shape == expected["x"].shape


def test_a_data_loader_of_several_batches(layer):
    batches = activation_batches(layer, BATCH)
    with pytest.raises(ActivationsError, match=r"one batch of 4, .* batch_size=None"):
        next(iter(DataLoader(batches, batch_size=4)))


def test_a_loaded_state_decides_its_epoch(layer):
    """And the epochs after it follow."""
    expected = orders(layer, range(5))
    batches = activation_batches(layer, BATCH, shuffle=True)
    batches.set_epoch(3)
    list(islice(batches, 2))
    state = batches.state_dict()
    other = activation_batches(layer, BATCH, shuffle=True)
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.set_epoch(3)
    assert places(other) == expected[3][2 * BATCH :]
    assert places(other) == expected[4]


def test_arguments_out_of_range(layer):
    with pytest.raises(ActivationsError, match="seed must be 0 or more"):
        activation_batches(layer, BATCH, seed=-1)
    with pytest.raises(ActivationsError, match="epoch must be 0 or more"):
        activation_batches(layer, BATCH).set_epoch(-1)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_several_epochs_in_one_iteration(layer, n_workers):
    """The same orders as one after the other, and as many batches as the length says."""
    batches = activation_batches(layer, BATCH, shuffle=True, epochs=3)
    loader = DataLoader(batches, batch_size=None, num_workers=n_workers)
    found = list(loader)
    if n_workers:
        expected = [place for o in loader_orders(layer, range(3), n_workers) for place in sorted(o)]
        n = len(expected) // 3
        mine = places(found)
        assert sorted(mine) == sorted(expected)
        assert {len(set(expected[k * n : (k + 1) * n])) for k in range(3)} == {n}
    else:
        assert places(found) == [place for order in orders(layer, range(3)) for place in order]
    assert len(batches) == len(loader) == len(found)
    # What follows is the fourth epoch.
    following = places(DataLoader(batches, batch_size=None, num_workers=n_workers))
    after = loader_orders(layer, [3], n_workers) if n_workers else orders(layer, [3])
    assert following[: len(after[0])] != places(found)[: len(after[0])]
    if not n_workers:
        assert following[: len(after[0])] == after[0]


def test_without_end(layer):
    """`next` on it never stops, as trainers want that call it; and it has no length."""
    batches = activation_batches(layer, BATCH, shuffle=True, epochs=None)
    expected = [place for order in orders(layer, range(3)) for place in order]
    found, iterator = [], iter(batches)
    while len(found) < len(expected):
        found += places([next(iterator)])
    assert found == expected
    with pytest.raises(TypeError, match="no end"):
        len(batches)


@pytest.mark.parametrize("after", [3, 40])
def test_left_in_a_later_epoch_of_an_iteration(layer, after):
    options = {"batch_size": BATCH, "shuffle": True, "epochs": 3}
    whole = [place for order in orders(layer, range(3)) for place in order]
    batches = activation_batches(layer, **options)
    iterator = iter(batches)
    done = sum(len(next(iterator)["x"]) for _ in range(after))
    state = batches.state_dict()
    again = activation_batches(layer, **options)
    again.load_state_dict(state)
    assert places(again) == whole[done:]


def test_a_worker_without_rows_ends(last_dataset):
    """Of an endless iteration too: two batches, and a third worker that has none."""
    batches = activation_batches(open_layer(last_dataset, 3), 4, epochs=None)
    loader = DataLoader(batches, batch_size=None, num_workers=3)
    found = [batch["sample"].tolist() for batch in islice(loader, 6)]
    assert sorted(sample for batch in found for sample in batch) == sorted([*range(8)] * 3)


@pytest.mark.parametrize("epochs", [0, -1])
def test_a_number_of_epochs_that_is_none(layer, epochs):
    with pytest.raises(ActivationsError, match="epochs must be 1 or more, or None"):
        activation_batches(layer, BATCH, epochs=epochs)


def test_no_shared_memory(layer):
    """A limit on files is one on shared memory; a full /dev/shm says it in the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(ActivationsError, match="bytes of shared memory, and the system gives"):
            activation_batches(layer, batch_size=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
