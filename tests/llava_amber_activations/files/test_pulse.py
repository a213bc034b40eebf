"""Whether another process runs, by the file that it writes."""

import dataclasses
import json
import time

from llava_amber_activations.files import pulse
from llava_amber_activations.files.processes import this_process
from llava_amber_activations.files.pulse import Pulse, beating, look

THERE = dataclasses.replace(this_process(), host="node2")


def say(path, process, count):
    path.write_text(json.dumps({**dataclasses.asdict(process), "count": count}))


def test_beating_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    path = tmp_path / "ranks" / "alive-00001"
    with beating(path):
        first = path.read_text()
        until = time.monotonic() + 30
        while path.read_text() in (first, "") and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads(path.read_text() or first)["pid"] == this_process().pid
        assert path.read_text() != first
    last = path.read_text()
    time.sleep(0.05)
    assert path.read_text() == last


def test_a_process_of_this_host(tmp_path):
    """The host says at once, and however silent it is."""
    path = tmp_path / "alive"
    say(path, this_process(), 0)
    heard = look(path, Pulse())
    assert heard.is_alive and not heard.is_gone
    silent = dataclasses.replace(heard, n_silent=pulse.SILENT_LOOKS)
    assert look(path, silent).is_alive
    say(path, dataclasses.replace(this_process(), start="0f"), 0)
    heard = look(path, Pulse())
    assert heard.is_gone and not heard.is_alive


def test_a_process_of_another_host(tmp_path):
    """A file of one that was killed says nothing new; half a file is no end of it."""
    path = tmp_path / "alive"
    nothing = look(path, Pulse())
    assert nothing == Pulse() and not nothing.is_alive and not nothing.is_gone
    say(path, THERE, 0)
    heard = look(path, nothing)
    assert not heard.is_alive and not heard.is_gone
    for _ in range(pulse.SILENT_LOOKS - 1):
        heard = look(path, heard)
    assert not heard.is_gone
    assert look(path, heard).is_gone
    path.write_text('{"host": ')
    heard = look(path, heard)
    assert heard.is_alive and heard.process == THERE
    say(path, THERE, 1)
    heard = look(path, heard)
    assert heard.is_alive and heard.n_silent == 0
    assert dataclasses.replace(heard, n_silent=pulse.SILENT_LOOKS).is_gone
