"""Ctrl-C, said in a sentence: what is kept, and what goes on with the rest."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


class InterruptedRunError(Exception):
    """A command was stopped by Ctrl-C: its text says what is kept and what goes on.

    The command line prints it on one line and exits with status 130, as shells do.
    """


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Say what a Ctrl-C leaves behind.

    Args:
        kept: gives the sentence, when everything inside has come to its end.

    Raises:
        InterruptedRunError: in the place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(kept()) from None


@contextmanager
def interrupts_left_to_this_process() -> Iterator[None]:
    """Start processes that Ctrl-C, which a terminal sends to every process, does not end.

    What they are told to do with it comes too late: until they have imported what they need, it
    would end them with a traceback. So they are started with the signal blocked, which stays with
    them; here it waits until the end of the block. Windows has no such thing.
    """
    if sys.platform == "win32":
        yield
        return
    # Python starts a process of its own before the first of these, and unblocks SIGINT after it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
