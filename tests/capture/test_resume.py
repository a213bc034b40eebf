"""Interrupted captures: killed at any moment and run again, the store is the undisturbed one."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from builder.verify import verify
from capture.run import capture
from capture.settings import CaptureSettings
from llava_amber_activations import ActivationsError


def files_of(folder):
    """Every file of a store but hidden ones, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture
def command(tiny_llava, image_dir, query_file):
    """Function that gives the command that captures into a folder, a sample a chunk."""

    def make(output_dir):
        return [
            sys.executable,
            *("-m", "capture", "--model", str(tiny_llava), "--dataset", str(query_file)),
            *("--image-dir", str(image_dir), "--output-dir", str(output_dir)),
            *("--positions", "all", "--chunk-samples", "1", "--batch-size", "1"),
        ]

    return make


def kill_after_chunks(command, output_dir, n_chunks):
    """Start a capture and `kill -9` it as soon as so many chunks are there."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    chunks = output_dir / "chunks"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if chunks.is_dir() and len(list(chunks.glob("chunk-*"))) >= n_chunks:
            time.sleep(random.Random(n_chunks).uniform(0, 0.03))
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate()
    return process.returncode


def test_killed_and_run_again(command, make_store, tmp_path):
    """Killed twice in mid-capture, then finished: every file equals an undisturbed run's."""
    undisturbed = make_store(
        tmp_path / "undisturbed", positions="all", chunk_samples=1, batch_size=1
    )
    store = tmp_path / "store"
    for n_chunks in (1, 4):
        assert kill_after_chunks(command(store), store, n_chunks) == -signal.SIGKILL
        assert not (store / "samples.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in (store / "chunks").glob("chunk-*")}
    assert 0 < len(kept) < 8
    subprocess.run(command(store), check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished chunk was redone"
    assert files_of(store) == files_of(undisturbed)


def test_two_ranks_make_the_store_of_one(tiny_llava, image_dir, query_file, last_store, tmp_path):
    """Chunks dealt out to two ranks, one after the other, give the same bytes as one process."""
    import torch

    settings = CaptureSettings(
        model=str(tiny_llava),
        dataset=query_file,
        image_dir=image_dir,
        output_dir=tmp_path / "store",
        batch_size=5,
        chunk_samples=3,
    )
    first = capture(settings, device=torch.device("cpu"), rank=1, world_size=2)
    assert first.records is None
    assert not (tmp_path / "store" / "samples.jsonl").exists()
    second = capture(settings, device=torch.device("cpu"), rank=0, world_size=2)
    assert second.records is not None
    assert (first.chunks_made, second.chunks_made) == (1, 2)
    assert files_of(tmp_path / "store") == files_of(last_store)


def test_two_processes_of_a_launch(command, make_store, tmp_path):
    """Two processes that a launcher starts share the chunks, and the store is that of one."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launch, *command(tmp_path / "two")[1:]], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": 4 of 8 chunks made now") + result.stdout.count("; 4 of 8") == 2
    one = make_store(tmp_path / "one", positions="all", chunk_samples=1, batch_size=1)
    assert files_of(tmp_path / "two") == files_of(one)


def test_another_recipe_is_refused(make_store, last_store):
    """Names what differs, and leaves the store as it was."""
    before = files_of(last_store)
    with pytest.raises(ActivationsError, match=r"x_site \('resid_mid', not 'mlp_in'\)"):
        make_store(last_store, x_site="mlp_in")
    assert files_of(last_store) == before


def test_what_no_capture_wrote_gets_no_checksum(make_store, tmp_path):
    """A key that the recipe does not have is not vouched for by going on with the store."""
    store = make_store(tmp_path / "store", max_samples=2)
    undisturbed = files_of(store)
    recipe = json.loads((store / "capture.json").read_text())
    (store / "capture.json").write_text(json.dumps({**recipe, "licence": "none"}))
    with pytest.raises(ActivationsError, match=r"capture\.json is not as it was written"):
        verify(store)
    make_store(store, max_samples=2)
    assert verify(store).n_rows == 2
    assert files_of(store) == undisturbed


def test_truncated_chunk_is_refused(make_store, tmp_path):
    """A chunk cut short is named, and neither taken for whole nor written over."""
    store = make_store(tmp_path / "store")
    chunk = store / "chunks" / "chunk-00001.safetensors"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    before = files_of(store)
    with pytest.raises(ActivationsError, match=r"chunk-00001\.safetensors is damaged.*delete it"):
        make_store(store)
    assert files_of(store) == before
    whole = store.parent / "whole"
    chunk.unlink()
    make_store(store)
    make_store(whole)
    assert files_of(store) == files_of(whole)


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(command):
    """Start two processes as a launcher does."""
    port = str(unused_port())
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def test_a_rank_killed_four_times(tiny_llava, image_dir, make_store, tmp_path):
    """One rank dies in the middle, four times, the other goes on; completed, the store is whole."""
    entries = [
        {"id": number, "image": f"AMBER_{number % 8 + 1}.jpg", "query": f"Number {number}?"}
        for number in range(16)
    ]
    queries = tmp_path / "queries.json"
    queries.write_text(json.dumps(entries))
    store = tmp_path / "store"
    command = [
        *(sys.executable, "-m", "capture", "--model", str(tiny_llava), "--dataset", str(queries)),
        *("--image-dir", str(image_dir), "--output-dir", str(store)),
        *("--positions", "all", "--chunk-samples", "1", "--batch-size", "1"),
    ]
    generator = random.Random(0)
    killed = 0
    for _ in range(4):
        before = len(list(store.glob("chunks/chunk-*")))
        ranks = start_ranks(command)
        victim = ranks[generator.randrange(2)]
        wanted = before + generator.randrange(1, 4)
        while victim.poll() is None and len(list(store.glob("chunks/chunk-*"))) < wanted:
            time.sleep(0.002)
        killed += victim.poll() is None
        victim.kill()
        # The other one finishes its own chunks, but is not always left the time to.
        time.sleep(generator.uniform(0, 0.3))
        for process in ranks:
            process.kill()
            process.wait()
    assert killed > 2, "the ranks must die while they work"
    subprocess.run(command, check=True, capture_output=True)
    one = make_store(
        tmp_path / "one", dataset=queries, positions="all", chunk_samples=1, batch_size=1
    )
    assert files_of(store) == files_of(one)
