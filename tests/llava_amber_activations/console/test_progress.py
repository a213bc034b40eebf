"""Progress: one moving line in a terminal, few lines in a log, none where nobody wants any."""

import os
import pty
import re
import subprocess
import sys
import time

import pytest

from llava_amber_activations.console import progress as module
from llava_amber_activations.console.progress import Progress, progress_of, speed
from llava_amber_activations.console.verbosity import Verbosity, set_verbosity


@pytest.fixture
def clock(monkeypatch):
    """Function that sets the time since each Progress began, in seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def set_time(seconds):
        now[0] = seconds

    return set_time


@pytest.fixture
def always_saying(monkeypatch):
    """Say something every few milliseconds instead of every half minute."""
    monkeypatch.setattr(module, "_EVERY_IN_LOG", 0.005)


def test_units_as_people_say_them():
    assert speed(84, 10.0, "shard") == "8.4 shards/s"
    assert speed(2, 8.4, "layer") == "4.2 s/layer"
    assert speed(3_000_000_000, 2.0, "B") == "1.50GB/s"


def test_the_line(clock):
    progress = Progress("export", total=31, unit="layer", shown=False)
    assert progress.text() == "export: 0 of 31 layers, 00:00"
    clock(65)
    progress.update(5)
    assert progress.text() == "export: 5 of 31 layers, 01:05, 05:38 left, 13.0 s/layer"
    progress.update(26, note="a note")
    assert progress.text() == "export: 31 of 31 layers, 01:05, 2.1 s/layer, a note"
    progress.update(-1)
    assert progress.n == 30


def test_what_has_no_end_or_no_units(clock):
    rows = Progress("read", unit="row", shown=False)
    time_alone = Progress("load a model", shown=False)
    size = Progress("upload", total=2_000_000, unit="B", shown=False)
    clock(10)
    rows.update()
    size.update(500_000)
    assert rows.text() == "read: 1 row, 00:10, 10.0 s/row"
    assert time_alone.text() == "load a model: 00:10"
    assert size.text() == "upload: 500kB of 2.00MB, 00:10, 00:30 left, 50.0kB/s"


def test_a_log_of_something_short_is_empty(capsys):
    assert list(progress_of([1, 2, 3], "count", unit="number")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_a_log_of_something_long(clock, capsys):
    """Begins no line in its first half minute, and ends with one that says all of it."""
    with Progress("count", total=2, unit="number") as progress:
        progress.update(2)
        clock(4)
    assert capsys.readouterr().err == "count: 2 of 2 numbers, 00:04, 2.0 s/number\n"


def test_a_line_comes_though_nothing_is_counted(always_saying, capsys):
    """A model that loads counts nothing, and still says that it is not dead."""
    with Progress("load a model"):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1 and set(lines) == {"load a model: 00:00"}


def test_quiet(always_saying, capsys):
    set_verbosity(Verbosity.QUIET)
    try:
        with Progress("load a model"):
            time.sleep(0.05)
    finally:
        set_verbosity(Verbosity.NORMAL)
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_line(clock, capsys):
    with pytest.raises(KeyError), Progress("count", total=2, unit="number"):
        clock(4)
        raise KeyError
    assert capsys.readouterr().err == "count: 0 of 2 numbers, 00:04\n"


def test_a_terminal_has_one_line():
    """Which is written over in place, and ends with a newline of its own."""
    program = (
        "import time\n"
        "from llava_amber_activations.console.progress import progress_of\n"
        "for _ in progress_of(range(4), 'count', unit='number'): time.sleep(0.3)\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait() == 0
    text = said.decode().replace("\r\n", "\n")
    assert text.count("\n") == 1 and text.endswith("\n")
    shown = [part.strip() for part in re.split(r"[\r\n]", text) if part.strip()]
    assert shown[0].startswith("count: 0 of 4 numbers, 00:00")
    assert shown[-1].startswith("count: 4 of 4 numbers, 00:01")
    assert len(shown) > 2
