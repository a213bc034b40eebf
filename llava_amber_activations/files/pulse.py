"""Whether another process still runs, on this host or on another that shares the disk.

Each writes a file anew every other second: who it is, and a count. Whether a process of this host
runs, the host says. One of another host is told by its file: it is gone when nothing new has been
in it for two minutes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from llava_amber_activations.files.processes import Process, this_host, this_process
from llava_amber_activations.files.whole import write_text

BEAT_SECONDS = 2.0
POLL_SECONDS = 0.1
# Looks, not time: while the shared disk itself hangs, whoever looks waits too.
SILENT_LOOKS = 1200


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Say by a file that this process runs, until the block ends; the file stays.

    Raises:
        ActivationsError: it cannot be written.
    """
    said = dataclasses.asdict(this_process())
    texts = (json.dumps({**said, "count": count}) for count in itertools.count())
    write_text(path, next(texts))
    stopped = Event()

    def beat() -> None:
        while not stopped.wait(BEAT_SECONDS):
            # Rank 0 may just remove what a launch that was killed left: the next is in time.
            with suppress(OSError):
                path.write_text(next(texts), encoding="utf-8")

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@dataclass(frozen=True)
class Pulse:
    """What is known of another process by its file.

    Attributes:
        said: what was in the file when it was last looked at; None where there was none.
        process: that the file names.
        was_heard: whether it has said something new since the first look.
        n_silent: looks since then.
    """

    said: str | None = None
    process: Process | None = None
    was_heard: bool = False
    n_silent: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether there was a process, and it runs no more."""
        if self.process is not None and self.process.host == this_host():
            return self.process.is_dead()
        return self.said is not None and self.n_silent >= SILENT_LOOKS

    @property
    def is_alive(self) -> bool:
        """Whether there surely is a process: a file alone may be left of one that was killed."""
        is_here = self.process is not None and self.process.host == this_host()
        return (is_here or self.was_heard) and not self.is_gone


def look(path: Path, before: Pulse) -> Pulse:
    """Look at a process's file again."""
    try:
        said = path.read_text(encoding="utf-8")
    except OSError:
        return Pulse()
    if said == before.said:
        return dataclasses.replace(before, n_silent=before.n_silent + 1)
    process = before.process
    # What is half written is new, and is whole at the next look.
    with suppress(ValueError, TypeError, KeyError):
        value = json.loads(said)
        process = Process(str(value["host"]), int(value["pid"]), str(value["start"]))
    return Pulse(said, process, was_heard=before.said is not None)
