"""How large the rows of a vector are: their root mean squares, counted in bins.

The bins are equal in the logarithm: 64 to an octave, so that a quantile is within 0.6 % of the
exact one, over all that float32 holds but its first and last octaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from llava_amber_activations.formats.statistics import LIMITS_PER_OCTAVE, OUTLIER_TIMES

_BINS_PER_OCTAVE = 64
_FIRST_OCTAVE, _LAST_OCTAVE = -40, 40
N_BINS = _BINS_PER_OCTAVE * (_LAST_OCTAVE - _FIRST_OCTAVE)
# Rows can be told apart where a limit can stand: a class of sizes is the bins between two limits.
_CLASS_BINS = _BINS_PER_OCTAVE // LIMITS_PER_OCTAVE

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


def bins_of(rms: Float64s) -> Int64s:
    """Return the bin of each root mean square: [rows]."""
    octaves = np.log2(np.maximum(rms, 2.0**_FIRST_OCTAVE)) - _FIRST_OCTAVE
    bins: Int64s = np.minimum((octaves * _BINS_PER_OCTAVE).astype(np.int64), N_BINS - 1)
    return bins


def classes_of(bins: Int64s) -> Int64s:
    """Return the class of sizes of each bin: [rows]."""
    return bins // _CLASS_BINS


def quantiles_of(counts: Int64s, quantiles: Iterable[float]) -> list[float]:
    """Return quantiles of the rows' root mean square, to the middle of a bin.

    Args:
        counts: rows of each bin: [bins].
    """
    return [2.0 ** (_FIRST_OCTAVE + (b + 0.5) / _BINS_PER_OCTAVE) for b in _at(counts, quantiles)]


def outlier_class(counts: Int64s, times: float = OUTLIER_TIMES) -> int:
    """Return the first class of sizes that is all over `times` the median row; N_BINS for none.

    Where half of the rows are zeros, or no more than 2**-40, there is none: of nothing there are no
    multiples.
    """
    (median,) = _at(counts, (0.5,))
    if median == 0:
        return N_BINS
    least = median + 0.5 + _BINS_PER_OCTAVE * math.log2(times)
    found = math.ceil(least / _CLASS_BINS)
    return found if found * _CLASS_BINS < N_BINS else N_BINS


def rows_from(counts: Int64s, size_class: int) -> int:
    """Return how many rows are of a class of sizes or of a greater one."""
    return int(counts[size_class * _CLASS_BINS :].sum())


def least_rms(size_class: int) -> float:
    """Return the least root mean square of a class of sizes; infinite where there is none."""
    return (
        math.inf
        if size_class == N_BINS
        else 2.0 ** (_FIRST_OCTAVE + size_class / LIMITS_PER_OCTAVE)
    )


def _at(counts: Int64s, quantiles: Iterable[float]) -> list[int]:
    """Return the bins of quantiles."""
    cumulative = np.cumsum(counts)
    return [int(np.searchsorted(cumulative, q * cumulative[-1])) for q in quantiles]
