"""Two processes that write to one place: the second is refused, the first is not disturbed."""

import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from folders import files_of
from paused import go_on, start_paused

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt


@pytest.fixture
def commands(small_store, small_dataset, write_layers, tmp_path_factory):
    """Of each command: where to pause it, its arguments, and the function that does the same."""
    pt = tmp_path_factory.mktemp("pt") / "pt"
    write_layers(pt)
    figures = "builder.folder.figures.draw_figures"
    return {
        "build": (
            figures,
            lambda place: ["build", small_store, place],
            lambda place: build(small_store, place),
        ),
        "import": (
            figures,
            lambda place: ["import", pt, place],
            lambda place: import_pt(pt, place),
        ),
        "export": (
            "builder.export.open_batch",
            lambda place: ["export", small_dataset, place, "--format", "layers"],
            lambda place: export(small_dataset, place, layout="layers"),
        ),
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [("build", "build"), ("build", "import"), ("import", "import"), ("export", "export")],
)
def test_the_second_is_refused(commands, cli, tmp_path, first, second):
    """In one line with the first one's pid; the first one's result is that of an undisturbed run.

    Two builds deleted each other's folder, and one of them, or both, died of it.
    """
    where, arguments, undisturbed = commands[first]
    place = tmp_path / "here" / "place"
    process = start_paused(where, *arguments(place))
    refused = cli(*commands[second][1](place))
    assert refused.returncode == 1
    said = rf"error: {re.escape(str(place))} is being (made|exported into) by process {process.pid}"
    assert re.match(rf"{said} on \S+ since .*: wait until it is done, .*\n$", refused.stderr)
    assert refused.stderr.count("\n") == 1
    assert go_on(process)[0] == 0
    undisturbed(tmp_path / "undisturbed")
    assert files_of(place) == files_of(tmp_path / "undisturbed")
    assert list(place.parent.iterdir()) == [place]


# What a killed build has finished, an import does not take away (test_build_resumed.py).
@pytest.mark.parametrize(
    ("first", "second"), [("build", "build"), ("import", "import"), ("export", "export")]
)
def test_after_a_kill_the_next_takes_over(commands, tmp_path, first, second):
    """What the dead one left, its lock too, is cleared away."""
    place = tmp_path / "here" / "place"
    process = start_paused(commands[first][0], *commands[first][1](place))
    process.kill()
    process.communicate()
    assert any(path.name.endswith(".lock") for path in place.parent.rglob("*"))
    commands[second][2](place)
    commands[second][2](tmp_path / "undisturbed")
    assert files_of(place) == files_of(tmp_path / "undisturbed")
    assert list(place.parent.iterdir()) == [place]


def children_of(pid):
    """Processes that a process has started to write shards, dead ones left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            command = (path.parent / "cmdline").read_bytes()
            if state != "Z" and int(parent) == pid and b"spawn_main" in command:
                found.append(int(path.parent.name))
    return found


def is_alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_processes_of_a_killed_build_end(small_store, tmp_path):
    """They waited for their parent for ever, or went on to write into what the next one clears."""
    arguments = ["build", small_store, tmp_path / "place", "--num-proc", "5"]
    process = subprocess.Popen([sys.executable, "-m", "llava_amber_activations", *arguments])
    while not list(
        tmp_path.glob(".place.unfinished/dataset/[ad]*/*.parquet")
    ):  # one of four shards is written
        assert process.poll() is None
        time.sleep(0.005)
    children = children_of(process.pid)
    process.kill()
    process.wait()
    assert children
    until = time.monotonic() + 30
    while still_there := [child for child in children if is_alive(child)]:
        assert time.monotonic() < until, f"{still_there} wait for their parent"
        time.sleep(0.05)
