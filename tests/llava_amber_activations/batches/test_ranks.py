"""Two training processes, with and without workers: every row once, whichever way it is read."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_amber_activations import ActivationsError, activation_batches, open_layer

BATCH = 12
SCRIPT = Path(__file__).parents[2] / "support" / "rank_side.py"
WAYS = ("prepared", "streaming", "open_layer", "hooks", "load_dataset", "one_shard")


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
    elif way == "one_shard":
        assert found.total() == n // BATCH * BATCH
    else:
        assert found.total() == n // (2 * BATCH) * 2 * BATCH
        assert len(mine[0]) == len(mine[1])


@pytest.mark.parametrize("workers", ["None", "fork"])
@pytest.mark.parametrize("way", ["prepared", "streaming", "open_layer", "hooks"])
def test_ranks_have_as_many_batches(of_ranks, places, way, workers):
    """And the length says how many; rows differ by one at most, the last one or two are smaller."""
    mine = [rank[f"{way} {workers} False"][0] for rank in of_ranks]
    n = places.total()
    expected = math.ceil(math.ceil(n / 2) / BATCH)
    assert [len(batches) for batches in mine] == [expected] * 2
    assert [rank["len"][way] for rank in of_ranks] == [expected] * 2
    counts = [sum(map(len, batches)) for batches in mine]
    assert sorted(counts) == [n // 2, n - n // 2]
    for batches in mine:
        sizes = sorted(map(len, batches))
        assert all(size == BATCH for size in sizes[2:])


@pytest.mark.parametrize("kill_after", [3, 9])
def test_killed_and_gone_on(all_dataset, places, tmp_path, kill_after):
    """`kill -9` in either of two epochs, two ranks of two workers: every row twice."""
    script = SCRIPT.with_name("killed_side.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]

    def run(kill_after):
        return subprocess.run(
            [*command, str(script), str(all_dataset), str(tmp_path), str(kill_after)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    killed = run(kill_after)
    assert killed.returncode != 0 and "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-2000:]
    saved = list(tmp_path.glob("*.pt"))
    before = [len(torch.load(path, weights_only=True)["rows"]) for path in saved]
    assert 0 < sum(before) < 2 * places.total()
    done = run(0)
    assert done.returncode == 0, done.stderr[-3000:]
    found = Counter()
    for rank in range(2):
        found.update(torch.load(tmp_path / f"{rank}.pt", weights_only=True)["rows"])
    assert found == places + places


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
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 8])
def test_ranks_that_are_given(last_dataset, shuffle, world_size):
    """Without torch.distributed: 8 rows in batches of 3 for up to seven ranks."""
    found = []
    for rank in range(world_size):
        batches = activation_batches(
            open_layer(last_dataset, 3), 3, shuffle=shuffle, rank=rank, world_size=world_size
        )
        found += [sample for batch in batches for sample in batch["sample"].tolist()]
    assert sorted(found) == list(range(8))


def test_fewer_rows_than_ranks(last_dataset):
    batches = activation_batches(open_layer(last_dataset, 3), 3, rank=0, world_size=9)
    with pytest.raises(ActivationsError, match="8 rows cannot be shared by 9 ranks"):
        next(iter(batches))


@pytest.mark.parametrize(
    ("rank", "world_size", "says"),
    [(0, None, "give both"), (None, 2, "give both"), (2, 2, "rank must be"), (-1, 2, "rank must")],
)
def test_ranks_that_are_none(last_dataset, rank, world_size, says):
    with pytest.raises(ActivationsError, match=says):
        activation_batches(open_layer(last_dataset, 3), 3, rank=rank, world_size=world_size)


_OWN_ROWS_PREPARED = """
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


def test_own_rows_that_accelerate_would_deal_out(last_dataset, tmp_path):
    """It would deal rank 0's own rows out to everybody, and the others' to nobody."""
    script = tmp_path / "script.py"
    script.write_text(_OWN_ROWS_PREPARED)
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


_PREPARED_BY_ACCELERATE = """
import json, sys
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from llava_amber_activations import Activations
folder, dispatch, workers = sys.argv[1], sys.argv[2] == "dispatch", int(sys.argv[3])
config = DataLoaderConfiguration(dispatch_batches=dispatch)
accelerator = Accelerator(cpu=True, dataloader_config=config)
acts = Activations(folder)
everything = acts.batches(3, 1, batch_size=4, drop_last=True, rank=0, world_size=1)
loader = DataLoader(everything, num_workers=workers)
places = [
    list(zip(batch["sample"].tolist(), batch["position"].tolist()))
    for batch in accelerator.prepare(loader)
]
with open(f"{sys.argv[4]}/{accelerator.process_index}.json", "w") as file:
    json.dump(places, file)
accelerator.end_training()
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["dispatch", "shard"])
def test_a_loader_that_accelerate_prepared(all_dataset, places, tmp_path, mode, workers):
    """Told that all rows are every process's, it deals them out.

    Both modes of its own: the first process reads and sends, or each reads and takes its share.
    Which rows come twice at the end of an epoch, to make ranks even, is accelerate's.
    """
    script = tmp_path / "script.py"
    script.write_text(_PREPARED_BY_ACCELERATE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(all_dataset), mode, str(workers), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > 0
    dealt = rows(ranks[0]) + rows(ranks[1])
    whole = places.total() // 4 * 4
    assert set(dealt) <= set(places) and len(dealt) == whole
    assert dealt.total() - whole < 8
