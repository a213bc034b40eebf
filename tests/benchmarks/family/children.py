"""One family a child process, each with a limit of time and one of memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Found = TypeVar("Found")

SECONDS, BYTES = 180, 12 << 30


def each_in_a_child(
    work: Callable[[str], Found],
    names: Sequence[str],
    lost: Callable[[str, str], Found],
    *,
    at_once: int = 2,
) -> Iterator[Found]:
    """Yield what `work` returns for each name, in the order in which they end.

    Args:
        lost: makes, of a name and of why, what stands for a child that returned nothing.
    """
    # Forked, for imports take longer than most families do. Nothing has run in this process yet
    # that would have started threads.
    context = multiprocessing.get_context("fork")
    waiting = list(names)
    running: dict[Connection, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(work, name, theirs), daemon=True)
            child.start()
            theirs.close()
            running[ours] = (name, child, time.monotonic())
        for ready in wait(list(running), timeout=1):
            assert isinstance(ready, Connection)
            name, child, _ = running.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                child.join()
                yield lost(name, f"its process ended with {child.exitcode}")
            child.join()
        for ours, (name, child, began) in list(running.items()):
            if time.monotonic() - began > SECONDS:
                child.kill()
                del running[ours]
                yield lost(name, f"it took more than {SECONDS} s")


def _child(work: Callable[[str], Found], name: str, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    answer.send(work(name))
