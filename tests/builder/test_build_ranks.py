"""Several processes that build one folder: each shard is made once, and the bytes are the same."""

import dataclasses
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from folders import files_of
from paused import start_paused

from builder.build import build
from builder.folder import ranks as ranks_module
from builder.folder.ranks import Ranks, ranks_of_launch
from llava_amber_activations import ActivationsError
from llava_amber_activations.files import pulse
from llava_amber_activations.files.processes import this_process

SHARD_SIZE = "1kB"


@pytest.fixture(scope="module")
def store(make_small_store, tmp_path_factory):
    return make_small_store(tmp_path_factory.mktemp("small") / "store", n_layers=8)


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    """Folder of one process: a shard for each of seven layers, and one of all."""
    folder = tmp_path_factory.mktemp("undisturbed") / "dataset"
    build(store, folder, max_shard_size=SHARD_SIZE)
    return folder


def test_torchrun(store, undisturbed, tmp_path):
    """As people start it; one of two says what there is to say."""
    dataset = tmp_path / "here" / "dataset"
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "builder"),
            *("build", store, dataset, "--max-shard-size", SHARD_SIZE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("files, 9 rows in default, all_layers. Next: load_dataset") == 1
    assert launched.stderr.count("before compression") == 1
    assert files_of(dataset) == files_of(undisturbed)
    assert list(dataset.parent.iterdir()) == [dataset]


@pytest.fixture
def written(monkeypatch):
    """The shards that are written, by name."""
    from builder.shards import write

    seen = Counter()

    def counted(path, schema, open_shard=write.open_shard):
        seen[path.name] += 1
        return open_shard(path, schema)

    monkeypatch.setattr(write, "open_shard", counted)
    return seen


def launch(world_size, store, dataset):
    """Build as the ranks of a launch, the last one first; what each returned, or raised."""

    def run(rank):
        return build(store, dataset, max_shard_size=SHARD_SIZE, ranks=Ranks(rank, world_size))

    with ThreadPoolExecutor(world_size) as pool:
        runs = [pool.submit(run, rank) for rank in reversed(range(world_size))]
        return [each.exception() or each.result() for each in reversed(runs)]


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_shards_are_dealt_out(store, undisturbed, written, tmp_path, world_size):
    """Each once, also to more ranks than there are; every rank ends with the folder there."""
    manifests = launch(world_size, store, tmp_path / "dataset")
    shards = [path for path in undisturbed.rglob("*.parquet") if path.parent.name != "samples"]
    assert sorted(written) == sorted(path.name for path in shards)
    assert set(written.values()) == {1}
    assert len({str(manifest.to_json()) for manifest in manifests}) == 1
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)
    assert list(tmp_path.iterdir()) == [tmp_path / "dataset"]


def test_what_ranks_finished_one_process_keeps(store, undisturbed, written, tmp_path, monkeypatch):
    """Rank 0 dies at the end: the others say so, and nothing is made again."""

    class DiedError(Exception):
        pass

    def die(*args):
        wait_for_others(*args)
        raise DiedError

    wait_for_others = ranks_module.wait_for_others
    with monkeypatch.context() as patch:
        patch.setattr("builder.build.wait_for_others", die)
        first, second = launch(2, store, tmp_path / "dataset")
    assert isinstance(first, DiedError)
    assert isinstance(second, ActivationsError)
    assert str(second).startswith("rank 0 of 2 (process ")
    assert "ended before" in str(second) and "the same command makes the rest" in str(second)
    assert not (tmp_path / "dataset").exists() and written.total() == 8
    written.clear()
    build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)
    assert written.total() == 0
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)


def test_ranks_keep_what_one_process_finished(store, undisturbed, written, tmp_path, monkeypatch):
    """And a launch of a number of ranks what one of another number did; damage is found."""
    from builder.shards import write

    class BrokenOffError(Exception):
        pass

    def break_off(path, schema, open_shard=write.open_shard):
        if written.total() == 3:
            raise BrokenOffError
        return open_shard(path, schema)

    with monkeypatch.context() as patch:
        patch.setattr(write, "open_shard", break_off)
        patch.setattr(write, "_MOST_THREADS", 1)
        with pytest.raises(BrokenOffError):
            build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)
    kept = sorted(tmp_path.glob(".dataset.unfinished/dataset/[ad]*/*.parquet"))
    assert len(kept) == 3
    content = bytearray(kept[0].read_bytes())
    content[100] ^= 1
    kept[0].write_bytes(content)
    written.clear()
    launch(3, store, tmp_path / "dataset")
    assert written.total() == 8 - 2 and written[kept[0].name] == 1
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_live_rank_is_killed(store, undisturbed, written, tmp_path, monkeypatch, victim):
    """SIGKILL in the middle of a shard; ranks started by hand. The other one waited for ever."""
    dataset = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", str(victim))
        with ThreadPoolExecutor(1) as pool:
            if victim == 0:
                killed = start_paused(
                    "builder.build.wait_for_others",
                    *("build", store, dataset, "--max-shard-size", SHARD_SIZE),
                )
            other = pool.submit(
                build, store, dataset, max_shard_size=SHARD_SIZE, ranks=Ranks(1 - victim, 2)
            )
            if victim == 1:
                killed = start_paused(
                    "builder.shards.write.open_shard",
                    *("build", store, dataset, "--max-shard-size", SHARD_SIZE),
                )
            while written.total() < 4:
                time.sleep(0.01)
            assert not other.done()
            killed.kill()
            killed.communicate()
            said = str(other.exception(timeout=60))
    whole = "its shards were finished" if victim else f"{dataset} was whole"
    assert said.startswith(f"rank {victim} of 2 (process {killed.pid} on ")
    assert said.endswith(
        f"ended before {whole}: what is finished is kept, and the same command makes the rest"
    )
    assert not dataset.exists()
    written.clear()
    launch(2, store, dataset)
    # Rank 1 had a shard in each of its threads.
    assert written.total() in (range(1, 5) if victim else [0])
    assert files_of(dataset) == files_of(undisturbed)
    assert list(tmp_path.iterdir()) == [dataset]


def test_a_rank_that_comes_first_waits_for_the_launch(store, undisturbed, tmp_path, monkeypatch):
    """After a kill: it took the launch that had been killed for its own, and said that it ended."""
    dataset = tmp_path / "dataset"

    class KilledError(Exception):
        pass

    def die(*args):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("builder.build.finish_folder", die)
        with pytest.raises(KilledError):
            build(store, dataset, max_shard_size=SHARD_SIZE)
    ranks = tmp_path / ".dataset.unfinished" / "ranks"
    ranks.mkdir()
    (ranks / "launch").write_text("killed")
    dead = dataclasses.replace(this_process(), start="of a process before")
    (ranks / "alive-00000").write_text(json.dumps(dataclasses.asdict(dead)))
    with ThreadPoolExecutor(1) as pool:
        options = {"max_shard_size": SHARD_SIZE}
        second = pool.submit(build, store, dataset, ranks=Ranks(1, 2), **options)
        time.sleep(0.3)
        assert not second.done()
        build(store, dataset, ranks=Ranks(0, 2), **options)
        assert second.result().n_rows == 9
    assert files_of(dataset) == files_of(undisturbed)


def test_a_rank_of_another_host_falls_silent(store, tmp_path, monkeypatch):
    """Of its process nothing is known here: its file is what tells."""
    dataset = tmp_path / "dataset"
    monkeypatch.setattr(pulse, "SILENT_LOOKS", 3)
    there = dataclasses.replace(this_process(), host="node2", pid=7)
    path = tmp_path / ".dataset.unfinished" / "ranks" / "alive-00001"

    def begin(folder, launch, ranks):
        path.write_text(json.dumps(dataclasses.asdict(there)))
        wait_for_others(folder, launch, ranks)

    wait_for_others = ranks_module.wait_for_others
    monkeypatch.setattr("builder.build.wait_for_others", begin)
    with pytest.raises(ActivationsError, match=r"rank 1 of 2 \(process 7 on node2\) ended before"):
        build(store, dataset, max_shard_size=SHARD_SIZE, ranks=Ranks(0, 2))


def test_a_rank_does_not_begin(store, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "_PATIENCE_SECONDS", 0.3)
    with pytest.raises(ActivationsError, match="rank 0 waits for rank 1 of 2, which does not"):
        build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE, ranks=Ranks(0, 2))


def test_rank_0_does_not_begin(store, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "_PATIENCE_SECONDS", 0.3)
    with pytest.raises(ActivationsError, match="rank 1 of 2 waits for rank 0, which does not"):
        build(store, tmp_path / "dataset", ranks=Ranks(1, 2))
    assert list(tmp_path.iterdir()) == []


def test_what_a_launcher_says(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks_of_launch() == Ranks(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks_of_launch() == Ranks(2, 4)
    for rank, said in (("4", "must be 0 to WORLD_SIZE - 1"), ("first", "are not both numbers")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ActivationsError, match=said):
            ranks_of_launch()
