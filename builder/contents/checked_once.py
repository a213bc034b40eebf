"""What a build has checked of its store in this process: each thing once, by its first reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable


class CheckedOnce:
    """Checks that have passed; threads that want the same one wait for whoever does it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._passed: set[Hashable] = set()

    def check(self, key: Hashable, check: Callable[[], None]) -> None:
        """Run a check unless one of the same key has passed.

        Raises:
            ActivationsError: whatever `check` raises.
        """
        if key in self._passed:
            return
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._passed:
                check()
                self._passed.add(key)


_LOCK = threading.Lock()
# Of the last build alone: the same files may have changed before the next one.
_OF_BUILD: dict[str, CheckedOnce] = {}


def checked_in(build: str) -> CheckedOnce:
    """Return what this process has checked for a build.

    Args:
        build: a name that no other build has; it travels to every process that takes part.
    """
    with _LOCK:
        if build not in _OF_BUILD:
            _OF_BUILD.clear()
            _OF_BUILD[build] = CheckedOnce()
        return _OF_BUILD[build]
