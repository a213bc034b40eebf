"""How many bytes of files this process has fetched from the Hub."""

from __future__ import annotations

import threading


class _Counter:
    def __init__(self) -> None:
        self.n_bytes = 0
        self.lock = threading.Lock()


_FETCHED = _Counter()


def count_fetched(n_bytes: int) -> None:
    """Add bytes that came."""
    with _FETCHED.lock:
        _FETCHED.n_bytes += n_bytes


def fetched_bytes() -> int:
    """Return the bytes of files that came so far; what the Hub says of a repo is not counted.

    What lies in the cache of `huggingface_hub` is not fetched.
    """
    return _FETCHED.n_bytes
