"""Moments of a stream of vectors, in one stable pass.

Counts, means and sums of squared deviations of two sets of rows merge into those of their union by
the formula of Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances" (1979), eq. 2.1; in float64, whatever the vectors' own type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from builder.shards.row_sizes import Float64s, Int64s
from llava_amber_activations.formats.statistics import COUNTED_KINDS

# What must be left of a sum of squares when the mean is taken off: of 16 digits, 6 may be lost.
_LEAST_LEFT = 1e-6


@dataclass(frozen=True)
class Moments:
    """Moments of some rows of one vector.

    Attributes:
        n: rows.
        mean: float64 [H].
        squares: float64 [H], sum of squared deviations from the mean.
        norm_sum: sum of the rows' Euclidean norms.
        kind_n: int64 [kinds], rows of each kind of token.
        kind_norm_sums: float64 [kinds], sum of the norms of each kind's rows.
    """

    n: int
    mean: Float64s
    squares: Float64s
    norm_sum: float
    kind_n: Int64s
    kind_norm_sums: Float64s

    @property
    def std(self) -> Float64s:
        """Population standard deviation of each dimension: [H]."""
        deviation: Float64s = np.sqrt(self.squares / self.n)
        return deviation

    @property
    def mean_square(self) -> Float64s:
        """Mean square of each dimension, its share of the energy: [H]."""
        return self.squares / self.n + self.mean**2


def moments_of(rows: Float64s, norms: Float64s, kinds: Int64s) -> Moments:
    """Return the moments of rows; there must be one.

    Args:
        rows: [rows, H], which are taken: their mean is subtracted from them.
        norms: their Euclidean norms: [rows].
        kinds: the place of each row's kind in `COUNTED_KINDS`: [rows].
    """
    mean = rows.mean(axis=0)
    rows -= mean
    return _moments(mean, np.einsum("rh,rh->h", rows, rows), norms, kinds)


def moments_about(
    point: Float64s, rows: Float64s, norms: Float64s, kinds: Int64s
) -> Moments | None:
    """Return the moments of rows that stand as differences from a point near them.

    Args:
        point: [H], which was subtracted from the rows.
        rows: [rows or more, H]; those beyond the number of `norms` are zeros, wherever they stand.
        norms: the Euclidean norms of the rows themselves, without the zeros: [rows].
        kinds: as in `moments_of`: [rows].

    Returns:
        None where the point is so far from the rows' mean that too many digits are lost.
    """
    shift = rows.sum(axis=0) / len(norms)
    about = np.einsum("rh,rh->h", rows, rows)
    squares = about - shift**2 * len(norms)
    if (squares < _LEAST_LEFT * about).any():
        return None
    return _moments(point + shift, squares, norms, kinds)


def _moments(mean: Float64s, squares: Float64s, norms: Float64s, kinds: Int64s) -> Moments:
    n_kinds = len(COUNTED_KINDS)
    norm_sums: Float64s = np.bincount(kinds, norms, n_kinds).astype(np.float64, copy=False)
    return Moments(
        n=len(norms),
        mean=mean,
        squares=squares,
        norm_sum=float(norms.sum()),
        kind_n=np.bincount(kinds, minlength=n_kinds),
        kind_norm_sums=norm_sums,
    )


def merged(first: Moments, second: Moments) -> Moments:
    """Return the moments of two sets of rows together."""
    n = first.n + second.n
    delta = second.mean - first.mean
    return Moments(
        n=n,
        mean=first.mean + delta * (second.n / n),
        squares=first.squares + second.squares + delta**2 * (first.n * second.n / n),
        norm_sum=first.norm_sum + second.norm_sum,
        kind_n=first.kind_n + second.kind_n,
        kind_norm_sums=first.kind_norm_sums + second.kind_norm_sums,
    )
