"""Ctrl-C, said in a sentence: what is kept, and what goes on with the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
