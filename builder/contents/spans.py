"""Rows that lie in several files, or samples, one after the other: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt


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


def first_rows(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the number of the first row of each of several runs of so many rows: [runs]."""
    ends = np.cumsum(np.array(counts, dtype=np.int64))
    return ends - counts


def run_of(firsts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return which run each of some rows is of, by the first rows of the runs."""
    found: npt.NDArray[np.int64] = np.searchsorted(firsts, rows, side="right") - 1
    return found
