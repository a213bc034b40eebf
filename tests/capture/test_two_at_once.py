"""Two captures into one store: the second is refused, ranks of one launch are not."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
from folders import files_of
from paused import go_on, start_paused

from capture import beforehand, run
from capture.settings import CaptureSettings
from capture.sink.store_lock import captured_into
from llava_amber_activations import ActivationsError
from llava_amber_activations.files.leftovers import capture_lock_path
from llava_amber_activations.files.locks import LockHeldError


@pytest.fixture
def arguments(tiny_llava, image_dir, query_file):
    """Function that gives the arguments of a capture into a folder, three samples a chunk."""

    def make(store):
        return [
            *("capture", "--model", tiny_llava, "--dataset", query_file),
            *("--image-dir", image_dir, "--output-dir", store),
            *("--batch-size", "5", "--chunk-samples", "3"),
        ]

    return make


def test_the_second_is_refused(arguments, cli, last_store, tmp_path):
    """Two that ran at once shared the partial file of a chunk, and a torn chunk was to be seen."""
    store = tmp_path / "store"
    first = start_paused("capture.sink.chunk_sink.write_chunk", *arguments(store))
    before = files_of(store)
    second = cli(*arguments(store))
    assert second.returncode == 1
    said = rf"error: {re.escape(str(store))} is being captured into by process {first.pid} on "
    assert re.search(rf"^{said}\S+ since .*: wait until it is done, ", second.stderr, re.M)
    assert files_of(store) == before
    assert go_on(first)[0] == 0
    assert files_of(store) == files_of(last_store)


@pytest.mark.parametrize(
    "where", ["capture.sink.chunk_sink.write_chunk", "llava_amber_activations.files.whole.sync"]
)
def test_after_a_kill_the_same_command_finishes(arguments, cli, last_store, tmp_path, where):
    """Also after a kill in the very first write, which the same command took for another's data."""
    store = tmp_path / "store"
    first = start_paused(where, *arguments(store))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    names = {path.name.split(".")[-1] for path in store.rglob(".*")}
    assert names <= {"lock", "partial"}
    done = cli(*arguments(store))
    assert done.returncode == 0, done.stderr
    assert files_of(store) == files_of(last_store)


def launched(monkeypatch, port):
    for name, value in {"MASTER_ADDR": "node1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("looks", [1, 2])
def test_a_rank_that_begins_while_another_looks(
    monkeypatch, tiny_llava, image_dir, query_file, last_store, tmp_path, looks
):
    """The other's recipe appeared between two looks at the folder: it was taken for foreign."""
    store, done = tmp_path / "store", []

    def looking(function):
        def look(path):
            found = function(path)
            done.append(function)
            if len(done) == looks:
                store.mkdir(exist_ok=True)
                shutil.copy(last_store / "capture.json", store)
            return found

        return look

    monkeypatch.setattr(beforehand, "is_store", looking(beforehand.is_store))
    monkeypatch.setattr(beforehand, "is_empty_or_missing", looking(beforehand.is_empty_or_missing))
    settings = CaptureSettings(
        model=str(tiny_llava),
        dataset=query_file,
        image_dir=image_dir,
        output_dir=store,
        batch_size=5,
        chunk_samples=3,
    )
    run.capture(settings, device=torch.device("cpu"))
    assert files_of(store) == files_of(last_store)


def test_ranks_of_one_launch_share_a_store(monkeypatch, tmp_path):
    """And no others: not another launch, and not a process of no launch."""
    store = tmp_path / "store"
    launched(monkeypatch, "29500")
    with captured_into(store, 1, 3), captured_into(store, 0, 3):
        assert capture_lock_path(store, 1).exists()
        for rank, world_size, port in ((2, 3, "29501"), (2, 4, "29500"), (0, 1, "29500")):
            launched(monkeypatch, port)
            refused = pytest.raises(LockHeldError, match=f"process {os.getpid()} on")
            with refused, captured_into(store, rank, world_size):
                pass
        assert sorted(path.name for path in store.iterdir()) == [
            ".capture-rank-00000.lock",
            ".capture-rank-00001.lock",
        ]
    assert not store.exists()


def test_one_rank_twice_is_refused(monkeypatch, tmp_path):
    """As two launches on two hosts are that both call themselves localhost."""
    launched(monkeypatch, "29500")
    refused = pytest.raises(ActivationsError, match="is being captured into")
    with captured_into(tmp_path / "store", 1, 2), refused, captured_into(tmp_path / "store", 1, 2):
        pass


def test_locks_of_another_launch(tmp_path):
    """A dead one's is removed; another host's is named, and the store is left as it was."""
    store = tmp_path / "store"
    with captured_into(store, 0, 1):
        record = json.loads(capture_lock_path(store, 0).read_text())
    store.mkdir()
    dead = {**record, "process": {**record["process"], "start": "abcdef"}}
    capture_lock_path(store, 7).write_text(json.dumps(dead))
    with captured_into(store, 0, 1):
        assert not capture_lock_path(store, 7).exists()
    far = {**record, "process": {**record["process"], "host": "node17"}, "group": "another"}
    capture_lock_path(store, 7).write_text(json.dumps(far))
    match = f"on node17 since.*if that process is gone, delete {capture_lock_path(store, 7)}"
    with pytest.raises(LockHeldError, match=match), captured_into(store, 0, 1):
        pass
    assert [path.name for path in store.iterdir()] == [".capture-rank-00007.lock"]
