"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import re

from llava_amber_activations.errors import ActivationsError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kKMGT]?)(?P<binary>i?)B?")
_MOST_DIGITS = 16
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Parse a size such as `500MB` or `1GiB` into bytes (MB is 10⁶ and MiB is 2²⁰).

    Raises:
        ActivationsError: the text is no size, or less than a byte.
    """
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match and len(match["number"]) < _MOST_DIGITS:
        base = 1024 if match["binary"] else 1000
        size = int(float(match["number"]) * base ** _POWERS[match["unit"]])
    if size < 1:
        raise ActivationsError(f"'{text}' is not a size: write 500MB or 1GiB")
    return size


def readable_size(n_bytes: float) -> str:
    """Return a number of bytes as people read it: `131.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
