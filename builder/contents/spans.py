"""Rows that lie in several files one after the other: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence


def spans(starts: Sequence[int], rows: range) -> Iterator[tuple[int, int, int]]:
    """Cut a range of rows where files end.

    Args:
        starts: first row of each file, and the number of rows of all at the end.
        rows: which are wanted.

    Yields:
        (file, start, stop): the file's number, and which of its own rows are wanted.
    """
    start = rows.start
    while start < rows.stop:
        file = bisect_right(starts, start) - 1
        stop = min(rows.stop, starts[file + 1])
        yield file, start - starts[file], stop - starts[file]
        start = stop
