"""Two training processes, with and without workers: every row once, whichever way it is read."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava_amber_activations import ActivationsError, activation_batches, open_layer
from llava_amber_activations.streams.parts import Part, cut

BATCH = 12
SCRIPT = Path(__file__).parents[2] / "support" / "rank_side.py"
WAYS = ("prepared", "streaming", "open_layer", "load_dataset", "one_shard")


@pytest.fixture(scope="module")
def of_ranks(all_dataset, tmp_path_factory):
    """What each of two processes of torchrun read."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(all_dataset), str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def places(all_store):
    """(sample, position) of every row."""
    chunks = [load_file(path) for path in sorted((all_store / "chunks").iterdir())]
    return Counter(
        place
        for chunk in chunks
        for place in zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True)
    )


def rows(batches):
    return Counter(tuple(place) for batch in batches for place in batch)


@pytest.mark.parametrize("workers", ["None", "fork"])
@pytest.mark.parametrize("way", WAYS)
def test_every_row_once_over_ranks_and_workers(of_ranks, places, way, workers):
    """Each epoch, which is another order than the last; no rank is without rows."""
    for epoch in range(2):
        mine = [rank[f"{way} {workers} False"][epoch] for rank in of_ranks]
        assert rows(mine[0]) + rows(mine[1]) == places
        assert all(mine)
    first, second = of_ranks[0][f"{way} {workers} False"]
    assert first != second


def test_spawned_workers_know_the_rank(of_ranks, places):
    """torch.distributed is not initialised in them."""
    mine = [rank["open_layer spawn False"][0] for rank in of_ranks]
    assert rows(mine[0]) + rows(mine[1]) == places
    assert mine == [rank["open_layer fork False"][0] for rank in of_ranks]


@pytest.mark.parametrize("workers", ["None", "fork"])
@pytest.mark.parametrize("way", WAYS)
def test_drop_last_loses_one_batch_of_all(of_ranks, places, way, workers):
    """Whatever the number of workers; of another stream, one of each rank."""
    n = places.total()
    mine = [rank[f"{way} {workers} True"][0] for rank in of_ranks]
    assert {len(batch) for batches in mine for batch in batches} == {BATCH}
    found = rows(mine[0]) + rows(mine[1])
    assert not found - places
    if way == "load_dataset":
        of_whole = [rows(rank[f"{way} None False"][0]).total() for rank in of_ranks]
        assert found.total() == sum(count // BATCH * BATCH for count in of_whole)
    else:
        assert found.total() == n // BATCH * BATCH
        assert abs(len(mine[0]) - len(mine[1])) <= 1


def test_only_the_last_batch_is_smaller(of_ranks, places):
    for way in ("prepared", "streaming", "open_layer"):
        for workers in ("None", "fork"):
            sizes = [len(batch) for rank in of_ranks for batch in rank[f"{way} {workers} False"][0]]
            n = places.total()
            assert Counter(sizes) == Counter([BATCH] * (n // BATCH) + [n % BATCH])


def test_torchrun_without_torch_distributed(of_ranks):
    """Nothing is guessed from the environment; what was made before is read when it begins."""
    for number, rank in enumerate(of_ranks):
        assert f"RANK={number} and WORLD_SIZE=2" in rank["before"]
        assert "init_process_group" in rank["before"]
    assert rows(of_ranks[0]["after"]) and not rows(of_ranks[0]["after"]) & rows(
        of_ranks[1]["after"]
    )


def test_all_rows_where_that_is_asked_for(of_ranks, places):
    for rank in of_ranks:
        assert rows(rank["all"][0]) == places


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_that_are_given(last_dataset, shuffle, world_size):
    """Without torch.distributed: 8 rows in batches of 3 for up to seven ranks."""
    found = []
    for rank in range(world_size):
        batches = activation_batches(
            open_layer(last_dataset, 3), 3, shuffle=shuffle, rank=rank, world_size=world_size
        )
        found += [sample for batch in batches for sample in batch["sample"].tolist()]
    assert sorted(found) == list(range(8))


@pytest.mark.parametrize(
    ("rank", "world_size", "says"),
    [(0, None, "give both"), (None, 2, "give both"), (2, 2, "rank must be"), (-1, 2, "rank must")],
)
def test_ranks_that_are_none(last_dataset, rank, world_size, says):
    with pytest.raises(ActivationsError, match=says):
        activation_batches(open_layer(last_dataset, 3), 3, rank=rank, world_size=world_size)


_PREPARED_BY_ACCELERATE = """
import sys
from accelerate import Accelerator
from torch.utils.data import DataLoader
from llava_amber_activations import ActivationsError, activation_batches, open_layer
accelerator = Accelerator(cpu=True)
loader = DataLoader(activation_batches(open_layer(sys.argv[1], 3), 3), batch_size=None)
try:
    next(iter(accelerator.prepare(loader)))
except ActivationsError as error:
    print(error)
finally:
    accelerator.end_training()
"""


def test_a_loader_that_accelerate_prepared(last_dataset, tmp_path):
    """It would deal rank 0's own rows out to everybody, and the others' to nobody."""
    script = tmp_path / "script.py"
    script.write_text(_PREPARED_BY_ACCELERATE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(last_dataset)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert "a loader that accelerate has prepared deals" in done.stdout, done.stderr[-3000:]


@given(st.integers(0, 500), st.integers(1, 70), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_parts_cover_the_rows(n_rows, batch_size, world_size, n_workers, drop_last):
    """Runs one after the other, whole batches but for the last; ranks differ by one at most."""
    ranks = [
        [
            Part(rank, world_size, worker, n_workers).rows(n_rows, batch_size, drop_last=drop_last)
            for worker in range(n_workers)
        ]
        for rank in range(world_size)
    ]
    runs = [run for rank in ranks for run in rank]
    covered = [row for run in runs for row in run]
    wanted = n_rows // batch_size * batch_size if drop_last else n_rows
    assert covered == list(range(wanted))
    counts = [sum(-(-len(run) // batch_size) for run in rank) for rank in ranks]
    assert max(counts) - min(counts) <= 1
    assert sum(len(run) % batch_size > 0 for run in runs) <= 1


@given(st.lists(st.integers(0, 9), max_size=8), st.data())
def test_pieces_of_runs(counts, data):
    start = data.draw(st.integers(0, sum(counts)))
    stop = data.draw(st.integers(start, sum(counts)))
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    pieces = cut(counts, range(start, stop))
    found = [firsts[number] + row for number, wanted in pieces for row in wanted]
    assert found == list(range(start, stop))
