"""A build that is broken off: what is finished is kept, checked, and not made again."""

import shutil
import subprocess
import sys
from collections import Counter

import pytest
from folders import files_of

from builder.build import build
from builder.import_pt import import_pt
from llava_amber_activations import ActivationsError

# Row groups of two rows at most, of which the store makes six: a shard for each of seven layers,
# and six of all layers, whose rows have 512 bytes.
SHARD_SIZE, GROUP_ROWS = "1kB", 2
N_SHARDS = 13


class BrokenOffError(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def written(monkeypatch):
    """The shards that are written, by name; `end_after` many of them, what writes the next dies."""
    from builder.shards import write

    class Written(Counter):
        end_after = None

    seen = Written()

    def counted(path, schema, open_shard=write.open_shard):
        if seen.end_after is not None and seen.total() >= seen.end_after:
            raise BrokenOffError
        seen[path.name] += 1
        return open_shard(path, schema)

    monkeypatch.setattr(write, "open_shard", counted)
    monkeypatch.setattr(write, "_MOST_THREADS", 1)
    return seen


@pytest.fixture(scope="module")
def store(make_small_store, tmp_path_factory):
    return make_small_store(tmp_path_factory.mktemp("small") / "store", n_layers=8)


@pytest.fixture(scope="module", autouse=True)
def small_groups():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builder.shards.plan._USUAL_GROUP_ROWS", GROUP_ROWS)
        yield


@pytest.fixture(scope="module")
def undisturbed(small_groups, store, tmp_path_factory):
    """Folder of a build that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "dataset"
    build(store, folder, max_shard_size=SHARD_SIZE)
    return folder


def shards_of(folder):
    shards = [path for path in folder.rglob("*.parquet") if path.parent.name != "samples"]
    return sorted(path.name for path in shards)


def broken_off(store, dataset, written, n_shards, **options):
    """Build so many shards, and die."""
    written.end_after = n_shards
    with pytest.raises(BrokenOffError):
        build(store, dataset, max_shard_size=SHARD_SIZE, **options)
    written.end_after = None
    written.clear()
    return dataset.with_name(f".{dataset.name}.unfinished")


@pytest.mark.parametrize("n_finished", [1, 5, 11])
def test_finished_shards_are_kept(store, undisturbed, written, tmp_path, capsys, n_finished):
    """The rest is made, each once; bytes are those of an undisturbed run, and nothing is left."""
    every = shards_of(undisturbed)
    assert len(every) == N_SHARDS
    kept = broken_off(store, tmp_path / "dataset", written, n_finished)
    before = shards_of(kept)
    assert len(before) == n_finished and not (tmp_path / "dataset").exists()
    build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)
    assert sorted(written) == sorted(set(every) - set(before)) and set(written.values()) == {1}
    assert (
        f"{n_finished} shards of {tmp_path / 'dataset'} were finished before"
        in capsys.readouterr().err
    )
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)
    assert list(tmp_path.iterdir()) == [tmp_path / "dataset"]


def test_nothing_finished_leaves_nothing(store, written, tmp_path):
    broken_off(store, tmp_path / "dataset", written, 0)
    assert list(tmp_path.iterdir()) == []


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [lambda path: flip(path, 200), cut_short, lambda path: path.unlink()],
    ids=["flipped", "cut short", "gone"],
)
@pytest.mark.parametrize("what", ["dataset/[ad]*/*.parquet", "finished/shard-*"])
def test_what_is_damaged_is_made_again(store, undisturbed, written, tmp_path, damage, what):
    """Shards, or what is kept of them: by their checksums, not their names."""
    kept = broken_off(store, tmp_path / "dataset", written, 12)
    before = shards_of(kept)
    damaged = sorted(kept.glob(what))[::3]
    assert len(damaged) == 4
    for path in damaged:
        damage(path)
    build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)
    again = set(before) & set(written)
    assert len(again) == 4
    if what.startswith("dataset"):
        assert again == {path.name for path in damaged}
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)


def test_moments_are_kept(store, written, tmp_path):
    """Those of rows set apart, too: statistics and figures are the same bytes."""
    import torch
    from safetensors.torch import load_file

    build(store, tmp_path / "undisturbed", configs=["all_layers"], max_shard_size=SHARD_SIZE)
    n_shards = len(shards_of(tmp_path / "undisturbed"))
    assert n_shards == 6
    written.clear()
    broken_off(store, tmp_path / "dataset", written, n_shards - 1, configs=["all_layers"])
    build(store, tmp_path / "dataset", configs=["all_layers"], max_shard_size=SHARD_SIZE)
    assert written.total() == 1
    assert files_of(tmp_path / "dataset") == files_of(tmp_path / "undisturbed")
    # Not merely the same as each other: the store's own mean.
    chunks = [load_file(path)["x_01"] for path in sorted((store / "chunks").iterdir())]
    mean = load_file(tmp_path / "dataset" / "statistics.safetensors")["x_mean"][1]
    assert torch.allclose(mean, torch.cat(chunks).mean(dim=0), atol=1e-6)


def test_another_build_is_refused(store, make_small_store, written, tmp_path):
    """Its shards are neither used nor deleted; the sentence says which build can go on."""
    dataset = tmp_path / "dataset"
    kept = broken_off(store, dataset, written, 3)
    before = files_of(kept)
    other = make_small_store(tmp_path / "other", scale=2.0)
    size = {"max_shard_size": SHARD_SIZE}
    for source, options, said in (
        (other, size, "of another store"),
        (store, {**size, "n_targets": 1}, "with --n-targets 2"),
        (store, {**size, "configs": ["all_layers"]}, "with --configs all_layers,default"),
        (store, {}, r"with --max-shard-size 1.0 kB"),
    ):
        with pytest.raises(ActivationsError, match=f"holds 3 finished shards of a build {said}: "):
            build(source, dataset, **options)
    assert files_of(kept) == before
    shutil.rmtree(kept)
    build(other, dataset)


def test_another_version_is_refused(store, written, tmp_path, monkeypatch):
    """It may write other bytes, which would not be those of an undisturbed run."""
    from builder.folder import unfinished

    broken_off(store, tmp_path / "dataset", written, 3)
    version = unfinished.version
    monkeypatch.setattr(
        unfinished, "version", lambda name: "1.0" if name == "pyarrow" else version(name)
    )
    with pytest.raises(ActivationsError, match=r"of a build by pyarrow \d+\."):
        build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)


def test_an_import_does_not_take_its_place(store, write_layers, written, tmp_path):
    write_layers(tmp_path / "pt")
    kept = broken_off(store, tmp_path / "dataset", written, 3)
    with pytest.raises(ActivationsError, match="its 3 finished shards are kept: run the same"):
        import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert len(shards_of(kept)) == 3


_KILLED = """if True:
    import importlib, os, signal, sys
    import builder.shards.plan
    import builder.shards.write
    builder.shards.plan._USUAL_GROUP_ROWS = 2
    # One after the other, or how many are whole is left to chance.
    builder.shards.write._MOST_THREADS = 1
    where, call, *sys.argv[1:] = sys.argv[1:]
    module, _, path = where.partition(":")
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    original, left = getattr(owner, name), int(call)

    def counted(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    from llava_amber_activations.cli import main
    main()
    """


@pytest.mark.parametrize(
    ("where", "call", "kept"),
    [
        ("builder.folder.unfinished:write_json", 1, 0),
        ("builder.shards.write:open_shard", 1, 0),
        # In the middle of a file; and of one that is whole, and nothing else says so yet.
        ("builder.shards.writer:ShardWriter.write_group", 40, 6),
        ("builder.shards.finished:FinishedShards.add", 5, 4),
        ("builder.build:finish_folder", 1, N_SHARDS),
        ("builder.folder.new_folder:write_json", 1, N_SHARDS),
        # The folder has its name; not all that was kept for it is gone.
        ("builder.asked.new_place:sync", 1, N_SHARDS),
    ],
)
def test_killed(store, undisturbed, written, tmp_path, where, call, kept):
    """`kill -9`: before, between, in the middle of, and after the shards; what is left finishes."""
    dataset = tmp_path / "dataset"
    arguments = ["build", store, dataset, "--max-shard-size", SHARD_SIZE]
    died = subprocess.run(
        [sys.executable, "-c", _KILLED, where, str(call), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -9, died.stderr
    n_finished = len(list(tmp_path.glob(".dataset.unfinished/finished/shard-*")))
    assert n_finished == kept
    build(store, dataset, max_shard_size=SHARD_SIZE)
    assert written.total() == N_SHARDS - kept
    assert files_of(dataset) == files_of(undisturbed)
    assert list(tmp_path.iterdir()) == [dataset]


def test_full_disk(store, undisturbed, written, tmp_path, monkeypatch):
    """What was finished before it was full is kept."""
    import errno

    from builder.shards import writer

    class Full(writer.ShardWriter):
        def close(self):
            super().close()
            if written.total() >= 5:
                raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "ShardWriter", Full)
        with pytest.raises(ActivationsError, match="make room there and run the same command"):
            build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)
    assert len(list(tmp_path.glob(".dataset.unfinished/finished/shard-*"))) == 4
    written.clear()
    build(store, tmp_path / "dataset", max_shard_size=SHARD_SIZE)
    assert written.total() == len(shards_of(undisturbed)) - 4
    assert files_of(tmp_path / "dataset") == files_of(undisturbed)
