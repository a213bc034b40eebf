"""What cannot be written is a sentence that names the file, whatever library wrote it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure

from llava_amber_activations import ActivationsError
from llava_amber_activations.files.whole import write_text, written_whole

# Linux's device on which every write meets a full disk.
FULL = Path("/dev/full")


def by_hand():
    FULL.write_text("a" * 100_000)


def by_torch():
    with FULL.open("wb") as file:
        torch.save({"x": torch.zeros(100_000)}, file)


def by_pyarrow():
    with FULL.open("wb") as file:
        pq.write_table(pa.table({"x": np.arange(100_000)}), pa.PythonFile(file, mode="w"))


def by_matplotlib():
    figure = Figure()
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).plot(np.random.default_rng(0).random(1000))
    figure.savefig(FULL, format="png")


@pytest.mark.parametrize("writer", [by_hand, by_torch, by_pyarrow, by_matplotlib])
def test_no_room(tmp_path, writer):
    path = tmp_path / "file"
    path.write_text("earlier")
    said = rf"^{path} cannot be written \(No space left on device\): make room there and run"
    with pytest.raises(ActivationsError, match=said), written_whole(path):
        writer()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_for_safetensors(tmp_path):
    """It is written in Rust, which quotes the number; its file is cut short by a limit."""
    program = """if True:
        import resource, sys, torch
        from pathlib import Path
        from safetensors.torch import save_file
        from llava_amber_activations.files.whole import written_whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with written_whole(Path(sys.argv[1])) as partial:
            save_file({"x": torch.zeros(1000)}, partial)
        """
    path = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert f"ActivationsError: {path} cannot be written (File too large): " in last
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_meanwhile_is_not_blamed_on_the_file(tmp_path):
    """Such as a shard's source that is on a broken disk, or that is not there."""
    for number in (errno.EIO, errno.EACCES, errno.ENOENT):
        with pytest.raises(OSError, match="elsewhere"), written_whole(tmp_path / "file"):
            raise OSError(number, os.strerror(number), "/elsewhere")
    refused = pytest.raises(ActivationsError, match=r"^said already$")
    with refused, written_whole(tmp_path / "file"):
        raise ActivationsError("said already") from OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(parents=True), r"Is a directory\): a folder has the name"),
        (lambda path: path.parent.write_text("mine"), r"(File exists|Not a directory)\): "),
    ],
)
def test_what_is_in_the_way(tmp_path, make, said):
    path = tmp_path / "folder" / "file"
    make(path)
    with pytest.raises(ActivationsError, match=rf"^{path} cannot be written \({said}"):
        write_text(path, "text")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lay down what it may not write")
def test_a_place_that_may_not_be_written(tmp_path):
    """By another user than the one who owns it."""
    tmp_path.chmod(0o755)
    program = """if True:
        import os, sys
        from pathlib import Path
        from llava_amber_activations.files.whole import write_text
        os.setuid(65534)
        write_text(Path(sys.argv[1]), "text")
        """
    path = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.endswith(
        f"ActivationsError: {path} cannot be written (Permission denied): give another place, "
        "or have it made writable, and run the same command again"
    )
