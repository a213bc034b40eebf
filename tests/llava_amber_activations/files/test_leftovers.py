"""What dead processes left is cleared, what living ones write is not, and nobody else's files."""

import os
import threading
from pathlib import Path

import pytest
import torch

from llava_amber_activations.files.leftovers import is_empty_or_missing, partial_path, sweep
from llava_amber_activations.files.whole import write_text, written_whole
from llava_amber_activations.store.tensor_file import write_tensors

WRITER = """if True:
    import sys
    from pathlib import Path
    from llava_amber_activations.files.whole import written_whole
    with written_whole(Path(sys.argv[1])) as partial:
        partial.write_text("half")
        print("writing", flush=True)
        sys.stdin.read()
    """


@pytest.fixture
def writer(start_waiting):
    """Function that starts a process which writes half of a file and waits."""
    return lambda path: start_waiting(WRITER, path, says="writing")


def test_what_a_killed_writer_left(writer, tmp_path):
    """Cleared as soon as its process is dead, even if nobody has asked for its status yet."""
    process = writer(tmp_path / "file")
    [partial] = tmp_path.iterdir()
    sweep(tmp_path)
    assert partial.read_text() == "half", "a living process's file"
    process.kill()
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
        pass
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_living_writer_finishes(writer, tmp_path):
    """Another's sweep and another's write of the same file do not disturb it."""
    process = writer(tmp_path / "file")
    sweep(tmp_path)
    write_text(tmp_path / "file", "of another")
    sweep(tmp_path)
    process.communicate("")
    assert process.returncode == 0
    assert [path.read_text() for path in tmp_path.iterdir()] == ["half"]


def renamed(partial, **parts):
    """Rename a partial as if another process had made it."""
    *name, host, pid, start, count, ending = partial.name.split(".")
    of = {"host": host, "pid": pid, "start": start, **parts}
    new = ".".join([*name, of["host"], of["pid"], of["start"], count, ending])
    return partial.rename(partial.with_name(new))


@pytest.mark.parametrize(
    ("parts", "is_left"),
    [
        ({}, True),
        ({"start": "abcdef"}, False),  # this process's pid, when it was another's
        ({"pid": str(2**22 + 1)}, False),  # more than Linux gives
        ({"pid": "9" * 30}, False),
        ({"host": "another-machine", "pid": "1"}, True),
        ({"start": "0"}, True),  # where /proc did not say when the process started
    ],
)
def test_whose_partial(tmp_path, parts, is_left):
    partial = partial_path(tmp_path / "file.json")
    partial.write_text("half")
    partial = renamed(partial, **parts)
    sweep(tmp_path)
    assert partial.exists() == is_left


def test_only_what_was_to_become_one_name(tmp_path):
    """Beside a data set there may be anything, such as another data set that is being made."""
    for name in ("one", "two"):
        folder = partial_path(tmp_path / name)
        (folder / "data").mkdir(parents=True)
        renamed(folder, start="abcdef")
    (tmp_path / ".notes.partial").write_text("mine")
    (tmp_path / ".one.partial").write_text("mine")
    sweep(tmp_path, "one")
    left = sorted(path.name.split(".")[1] for path in tmp_path.iterdir())
    assert left == ["notes", "one", "two"]


def test_tensors_are_written_under_names_that_sweep_knows(tmp_path):
    """Beside their place, in a file that a kill would leave."""
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            seen.update(path.name for path in tmp_path.iterdir())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        write_tensors(tmp_path / "tensors", {"x": torch.zeros(1 << 24)}, "key", {})
    finally:
        done.set()
        looking.join()
    seen.discard("tensors")
    assert seen and all(name.endswith(".partial") for name in seen)
    assert list(tmp_path.iterdir()) == [tmp_path / "tensors"]


def test_a_forked_process_has_names_of_its_own(tmp_path):
    """As the processes are that a DataLoader starts."""
    with written_whole(tmp_path / "file") as mine:
        mine.write_text("of the parent")
        pid = os.fork()
        if not pid:
            ok = partial_path(tmp_path / "file").name.split(".")[3] == str(os.getpid())
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_where_a_folder_can_be_made(tmp_path):
    """Nothing or an empty folder, not a file, and not a folder with even a hidden file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / ".hidden").touch()
    names = ("absent", "empty", "file", "used")
    found = [is_empty_or_missing(tmp_path / name) for name in names]
    assert found == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        (".capture.json.host.12.ab.0.partial", True),
        (".capture.json.4711.partial", True),  # of release 0.1
        (".capture-rank-00000.lock", True),
        (".export.lock", True),
        (".notes.partial", False),
        (".notes.lock", False),
        ("capture.json", False),
        ("chunks", False),
    ],
)
def test_leftovers_are_nothing_in_the_way(tmp_path, name, is_ours):
    """What a kill in the first write leaves is not somebody's data."""
    (tmp_path / name).touch()
    assert is_empty_or_missing(tmp_path) == is_ours


def test_a_lock_that_another_rank_is_making(tmp_path):
    """What was gone by the time of a second look at it was taken for something in the way."""
    stop = threading.Event()

    def write():
        while not stop.is_set():
            partial = partial_path(tmp_path / ".capture-rank-00001.lock")
            partial.touch()
            partial.unlink()

    other = threading.Thread(target=write)
    other.start()
    try:
        assert all(is_empty_or_missing(tmp_path) for _ in range(3000))
    finally:
        stop.set()
        other.join()
