"""Several processes that build one folder: each shard is made once, and the bytes are the same."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from folders import files_of

from builder.build import build
from builder.folder import ranks as ranks_module
from builder.folder.ranks import Ranks, ranks_of_launch
from llava_amber_activations import ActivationsError

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
    assert sorted(written) == sorted(path.name for path in undisturbed.rglob("*.parquet"))
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
    assert "rank 0 ended before" in str(second) and "the same command makes the rest" in str(second)
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
    kept = sorted(tmp_path.glob(".dataset.unfinished/dataset/*/*.parquet"))
    assert len(kept) == 3
    content = bytearray(kept[0].read_bytes())
    content[100] ^= 1
    kept[0].write_bytes(content)
    written.clear()
    launch(3, store, tmp_path / "dataset")
    assert written.total() == 8 - 2 and written[kept[0].name] == 1
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)


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
