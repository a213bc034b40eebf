"""Locks: who holds one is told, a dead one's is taken over, and of two that come one has it."""

import json
import os
import re

import pytest

from llava_amber_activations import ActivationsError
from llava_amber_activations.files.locks import LockHeldError, clear_dead, held, read_holder
from llava_amber_activations.files.processes import this_host

HOLDER = """if True:
    import sys
    from pathlib import Path
    from llava_amber_activations.files.locks import LockHeldError, held
    path = Path(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with held(path, "PLACE is being made"):
            print("held", flush=True)
            sys.stdin.readline()
    except LockHeldError as error:
        print(error)
    """


@pytest.fixture
def start(start_waiting):
    """Function that starts a process that takes a lock at one line and drops it at the next."""
    return lambda path: start_waiting(HOLDER, path, says="ready")


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_second_is_refused_while_the_first_lives(start, tmp_path):
    """It is told which process on which host holds the lock since when, and what to do."""
    path = tmp_path / "new" / "folder" / ".lock"
    first = start(path)
    go_on(first)
    assert first.stdout.readline() == "held\n"
    said = (
        rf"^PLACE is being made by process {first.pid} on {re.escape(this_host())} "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(-c .*\.lock\): wait until it is done, "
        r"or give another folder$"
    )
    with pytest.raises(LockHeldError, match=said), held(path, "PLACE is being made"):
        pass
    assert [name.name for name in path.parent.iterdir()] == [".lock"]
    first.communicate("\n")
    assert list(tmp_path.iterdir()) == [], "the folders that were made for it went as well"
    with held(path, "PLACE is being made"):
        assert read_holder(path).process.pid == os.getpid()


def test_a_dead_ones_lock_is_taken_over(start, tmp_path):
    path = tmp_path / ".lock"
    first = start(path)
    go_on(first)
    assert first.stdout.readline() == "held\n"
    assert not clear_dead(path)
    first.kill()
    first.wait()
    with held(path, "PLACE is being made"):
        assert read_holder(path).process.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_come_at_once_one_holds_it(start, tmp_path):
    """Six times three processes, every second time with a dead one's lock in their way."""
    path = tmp_path / ".lock"
    for attempt in range(6):
        if attempt % 2:
            with held(path, "PLACE is being made"):
                record = json.loads(path.read_text())
            record["process"]["start"] = "abcdef"
            path.write_text(json.dumps(record))
        processes = [start(path) for _ in range(3)]
        for process in processes:
            go_on(process)
        said = [process.stdout.readline() for process in processes]
        assert said.count("held\n") == 1, said
        winner = processes[said.index("held\n")]
        assert sum(f"by process {winner.pid} on" in line for line in said) == 2, said
        for process in processes:
            process.communicate("\n")
        assert list(tmp_path.iterdir()) == []


def test_another_hosts_lock(tmp_path):
    """Nothing is known of its process: the file to delete is named."""
    path = tmp_path / ".lock"
    process = {"host": "node17", "pid": 4711, "start": "1"}
    path.write_text(json.dumps({"process": process, "since": "then", "command": "c", "group": ""}))
    match = rf"process 4711 on node17 since then \(c\).*if that process is gone, delete {path}"
    with pytest.raises(LockHeldError, match=match), held(path, "PLACE is being made"):
        pass
    assert path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": 3}', "\udcff"])
def test_a_lock_that_names_nobody(tmp_path, text):
    """As a file system without links may leave it: it is told which file to delete."""
    path = tmp_path / ".lock"
    path.write_bytes(text.encode(errors="surrogateescape"))
    refused = pytest.raises(LockHeldError, match=f"does not name.*delete {path}")
    with refused, held(path, "PLACE is being made"):
        pass


def test_without_hard_links(tmp_path, monkeypatch):
    """As on some network file systems: made exclusively, and then written."""
    from pathlib import Path

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / ".lock"
    with held(path, "PLACE is being made"):
        assert read_holder(path).process.pid == os.getpid()
        refused = pytest.raises(LockHeldError, match=f"process {os.getpid()}")
        with refused, held(path, "PLACE is being made"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_anothers_lock_is_not_removed_at_the_end(tmp_path):
    """Where somebody deleted ours and made their own."""
    path = tmp_path / ".lock"
    with held(path, "PLACE is being made"):
        record = json.loads(path.read_text())
        record["process"]["pid"] = 1
        path.write_text(json.dumps(record))
    assert path.exists()


def test_where_no_lock_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "folder" / ".lock"
    refused = pytest.raises(ActivationsError, match=r"\.lock cannot be written \(.*another place")
    with refused, held(path, "PLACE is being made"):
        pass
