"""Progress of what takes more than a moment: a moving line in a terminal, few lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from threading import Event, Lock, Thread
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from llava_amber_activations.console.verbosity import Verbosity, over_line, verbosity

_T = TypeVar("_T")

# How often something is said that has not changed but for its time, in seconds.
_EVERY_IN_TERMINAL = 0.5
_EVERY_IN_LOG = 30.0
# What is done sooner needs no line in a log.
_MOMENT = 3.0

# No line is written behind the last one.
_ONE_AT_A_TIME = Lock()


class Progress:
    """How far something is: `with Progress("build", total=84, unit="shard") as p: p.update()`.

    Everything goes to stderr. In a terminal it is one line, which moves. Anywhere else (a log, a
    pipe) it is a line every half minute and one at the end, and none where all is done within
    three seconds. A quiet process says nothing.
    """

    def __init__(
        self, what: str, *, total: int | None = None, unit: str = "", shown: bool = True
    ) -> None:
        """Begin to count.

        Args:
            what: is being done.
            total: how many units there are; None where nobody knows.
            unit: of what is counted, such as `layer`; `B` counts bytes; none where only the time
                can be told.
            shown: False counts without a word, such as in all processes of a launch but one.
        """
        self.what, self.total, self.unit = what, total, unit
        self.n = 0
        self._note = ""
        self._began = time.monotonic()
        self._ended = Event()
        self._shown = shown and verbosity() > Verbosity.QUIET
        self._in_place = sys.stderr.isatty()
        if self._shown:
            if self._in_place:
                self._say()
            Thread(target=self._keep_saying, daemon=True, name="progress").start()

    def update(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more units, or less where something is begun again.

        Args:
            note: what stands behind the numbers from here on.
        """
        self.n += n
        if note is not None:
            self._note = note

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        took_long = time.monotonic() - self._began >= _MOMENT
        if self._shown and (self._in_place or took_long):
            self._say(last=True)

    def text(self) -> str:
        """Return the line: `build: 12 of 84 shards, 1:05, 5:50 left, 5.4 s/shard`."""
        elapsed = time.monotonic() - self._began
        parts = [self._count(), tqdm.format_interval(elapsed)]
        if self.unit and self.n > 0:
            if self.total is not None and self.n < self.total:
                left = elapsed / self.n * (self.total - self.n)
                parts.append(f"{tqdm.format_interval(left)} left")
            parts.append(speed(self.n, elapsed, self.unit))
        parts.append(self._note)
        return f"{self.what}: {', '.join(part for part in parts if part)}"

    def _count(self) -> str:
        if not self.unit:
            return ""
        if self.unit == "B":
            done = f"{tqdm.format_sizeof(self.n)}B"
            return done if self.total is None else f"{done} of {tqdm.format_sizeof(self.total)}B"
        if self.total is None:
            return f"{self.n} {self.unit}{'' if self.n == 1 else 's'}"
        return f"{self.n} of {self.total} {self.unit}{'' if self.total == 1 else 's'}"

    def _keep_saying(self) -> None:
        while not self._ended.wait(_EVERY_IN_TERMINAL if self._in_place else _EVERY_IN_LOG):
            self._say()

    def _say(self, *, last: bool = False) -> None:
        if self._in_place:
            # Shorter than the line, which would not be written over otherwise.
            width = shutil.get_terminal_size().columns - 1
            text, end = over_line(self.text()[:width]), "\n" if last else ""
        else:
            text, end = self.text(), "\n"
        with _ONE_AT_A_TIME:
            if last or not self._ended.is_set():
                sys.stderr.write(text + end)
                sys.stderr.flush()


def speed(n: int, seconds: float, unit: str) -> str:
    """Return a speed that a person can compare: `12.3 shards/s`, or `4.2 s/shard` of slow ones."""
    if unit == "B":
        return f"{tqdm.format_sizeof(n / max(seconds, 1e-9))}B/s"
    if n >= seconds:
        return f"{n / max(seconds, 1e-9):.1f} {unit}s/s"
    return f"{seconds / n:.1f} s/{unit}"


def progress_of(
    items: Iterable[_T], what: str, *, unit: str, total: int | None = None
) -> Iterator[_T]:
    """Yield items, and count each one when the next is asked for.

    Args:
        total: how many there are; None asks the items, where they know.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()
