"""Ctrl-C: one line that says what is kept and what goes on, exit 130, and nothing half."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from builder.verify import verify


@pytest.fixture
def interrupt(tmp_path):
    """Function that runs a command, interrupts it as soon as some path is there, and waits.

    The command is slowed down where it is sure to be at work: each call of `slow` (a module and a
    name in it) notes in a file `begun` that it was made, and waits before it returns.
    """

    def run(arguments, slow, until, env=None):
        module, name = slow
        program = (
            "import pathlib, signal, sys, time\n"
            f"import {module} as module\n"
            f"quick = module.{name}\n"
            "def slow(*args, **options):\n"
            "    result = quick(*args, **options)\n"
            "    pathlib.Path('begun').touch()\n"
            "    time.sleep(0.3)\n"
            "    return result\n"
            f"module.{name} = slow\n"
            "from llava_amber_activations.cli import main\n"
            # What starts the tests in the background of a shell makes all below it deaf to Ctrl-C.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "sys.argv = ['llava-amber', *sys.argv[1:]]\n"
            "main()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=env,
            # A process group of its own, all of which a terminal's Ctrl-C reaches.
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not until():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 130, stderr
        assert stdout == "" and "Traceback" not in stderr
        lines = [line for line in stderr.splitlines() if line]
        assert lines[-1].startswith("stopped: "), stderr
        return lines[-1]

    return run


def names(folder):
    """Return the names of all that is in a folder, hidden ones too."""
    return sorted(path.name for path in folder.rglob("*"))


def test_capture(interrupt, cli, tiny_llava, query_file, image_dir, last_store, tmp_path):
    store = tmp_path / "store"
    arguments = [
        *("capture", "--model", tiny_llava, "--dataset", query_file, "--image-dir", image_dir),
        *("--output-dir", store, "--chunk-samples", "1", "--batch-size", "1"),
    ]
    first = store / "chunks" / "chunk-00001.safetensors"
    line = interrupt(arguments, ("capture.pipeline", "run_batch"), first.exists)
    chunks = names(store / "chunks")
    said = re.search(r"(\d) of 8 chunks are kept in (\S+), and the same command makes", line)
    assert (int(said[1]), said[2]) == (len(chunks), str(store))
    assert 2 <= len(chunks) < 8 and all(
        re.fullmatch(r"chunk-\d{5}\.safetensors", c) for c in chunks
    )
    before = {name: (store / "chunks" / name).read_bytes() for name in chunks}
    # No lock and no file that was begun.
    assert names(store) == sorted([*chunks, "capture.json", "chunks"])
    again = cli(*arguments)
    assert again.returncode == 0 and f"{8 - len(chunks)} of 8 chunks made now" in again.stdout
    assert {name: (store / "chunks" / name).read_bytes() for name in chunks} == before
    assert verify(store).n_rows == 8


def check_kept(line, dataset):
    """Check that a build says what it keeps: the shards that are whole, and nothing half.

    Returns:
        How many they are.
    """
    unfinished = dataset.with_name(f".{dataset.name}.unfinished")
    kept = list(unfinished.glob("dataset/[ad]*/*.parquet"))
    if kept:
        said = rf"{len(kept)} finished shards of {re.escape(str(dataset))} are kept in (\S+), and "
        assert re.search(said + "the same command makes the rest", line)[1] == str(unfinished)
    else:
        assert f"nothing of {dataset} is kept, and the same command makes it" in line
    assert list(dataset.parent.iterdir()) == ([unfinished] if kept else [])
    assert not [name for name in names(dataset.parent) if name.endswith((".partial", ".lock"))]
    return len(kept)


@pytest.mark.parametrize("num_proc", [1, 5], ids=["threads", "processes"])
def test_build(interrupt, cli, last_store, tmp_path, num_proc):
    """Shards that are finished are kept, and not made again."""
    dataset = tmp_path / "here" / "dataset"
    dataset.parent.mkdir()
    arguments = ["build", last_store, dataset]
    line = interrupt(
        [*arguments, "--num-proc", num_proc],
        ("builder.shards.write", "open_shard"),
        lambda: any(dataset.parent.glob(".dataset.unfinished/finished/shard-*")),
    )
    n_kept = check_kept(line, dataset)
    assert 0 < n_kept < 32
    again = cli(*arguments)
    assert again.returncode == 0
    assert f"{n_kept} shards of {dataset} were finished before" in again.stderr
    assert verify(dataset).n_rows == 8


@pytest.fixture
def slow_to_start(tmp_path):
    """Environment in which each process that another starts says so in `started`, and waits."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        "if any('spawn_main' in word for word in sys.orig_argv):\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(1)\n"
    )
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {**os.environ, "PYTHONPATH": path}


def test_build_whose_processes_only_begin(interrupt, last_store, slow_to_start, tmp_path):
    """They printed a traceback each where they were still importing.

    What they were given already they finish.
    """
    dataset = tmp_path / "here" / "dataset"
    dataset.parent.mkdir()
    line = interrupt(
        ["build", last_store, dataset, "--num-proc", "5"],
        ("builder.shards.write", "open_shard"),
        (tmp_path / "started").exists,
        slow_to_start,
    )
    check_kept(line, dataset)


def test_capture_whose_workers_only_begin(
    interrupt, tiny_llava, query_file, image_dir, slow_to_start, tmp_path
):
    """They printed a traceback each where they were still importing."""
    line = interrupt(
        [
            *("capture", "--model", tiny_llava, "--dataset", query_file, "--image-dir", image_dir),
            *("--output-dir", tmp_path / "store", "--num-workers", "2"),
        ],
        ("capture.pipeline", "run_batch"),
        (tmp_path / "started").exists,
        slow_to_start,
    )
    assert "of 1 chunks are kept in" in line


def test_export(interrupt, cli, last_dataset, tmp_path):
    out = tmp_path / "pt"
    arguments = ["export", last_dataset, out, "--format", "layers", "--batch-size", "4"]
    line = interrupt(
        arguments, ("builder.export", "open_batch"), (out / "L2" / "batch_0_x.pt").exists
    )
    assert f"the files that are whole are kept in {out}, and the same command writes" in line
    kept = list(out.rglob("*.pt"))
    assert not [name for name in names(out) if name.endswith((".partial", ".lock"))]
    again = cli(*arguments)
    n_files = len(list(out.rglob("*.pt")))
    written = int(re.search(r"(\d+) new", again.stdout)[1])
    assert n_files == 31 * 2 * 2 and n_files - len(kept) <= written < n_files


def test_import(interrupt, last_dataset, tmp_path):
    from builder.export import export

    export(last_dataset, tmp_path / "pt", layout="layers")
    dataset = tmp_path / "here" / "dataset"
    dataset.parent.mkdir()
    line = interrupt(
        ["import", tmp_path / "pt", dataset],
        ("builder.shards.write", "open_shard"),
        lambda: any(dataset.parent.glob(".*.partial/data/*.parquet")),
    )
    assert f"nothing of {dataset} is kept" in line and names(dataset.parent) == []


def test_verify(interrupt, last_dataset, tmp_path):
    """What writes nothing says that nothing was changed."""
    begun = tmp_path / "begun"
    line = interrupt(["verify", last_dataset], ("builder.verify", "_check_file"), begun.exists)
    assert line == "stopped: nothing was changed; run the same command again"
