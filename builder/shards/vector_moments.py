"""Moments of all rows of a vector, and of those that are no outliers, in one pass.

Which rows are outliers is known at the end, when all have been counted by their sizes. So a row
that is large beside those before it is set apart, with the others of its class of sizes; at the end
each class is an outlier or not. No outlier is taken off a sum that it was added to: beside its
square, those of all others may be lost in rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from builder.shards.moments import Moments, merged, moments_about, moments_of
from builder.shards.row_sizes import (
    N_BINS,
    Int64s,
    bins_of,
    classes_of,
    outlier_class,
    quantiles_of,
    rows_from,
)
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.statistics import OUTLIER_TIMES

# Half of what makes an outlier: the median of the first rows may be twice that of all.
_LARGE_TIMES = OUTLIER_TIMES / 2


@dataclass(frozen=True)
class VectorMoments:
    """Moments of some rows of one vector, by the sizes of the rows.

    Attributes:
        whole: of all rows.
        usual: of the rows that were not set apart; the same object as `whole` where none was, and
            None where all were.
        large: of the rows that were, by their class of sizes.
        rms_counts: int64 [bins], how many rows have their root mean square in each bin.
    """

    whole: Moments
    usual: Moments | None
    large: Mapping[int, Moments]
    rms_counts: Int64s

    def rms_quantiles(self, quantiles: Iterable[float]) -> list[float]:
        """Return quantiles of the rows' root mean square, to the middle of a bin."""
        return quantiles_of(self.rms_counts, quantiles)

    @property
    def outliers_from(self) -> int:
        """The first class of sizes whose rows are outliers among these rows."""
        return outlier_class(self.rms_counts)

    @property
    def are_outliers_apart(self) -> bool:
        """Whether every outlier was set apart, so that `robust` is to be had."""
        first = self.outliers_from
        apart = sum(moments.n for size, moments in self.large.items() if size >= first)
        return apart == rows_from(self.rms_counts, first)

    @property
    def robust(self) -> Moments:
        """Moments of the rows that are no outliers; half of all are not."""
        assert self.are_outliers_apart
        first = self.outliers_from
        if not rows_from(self.rms_counts, first):
            return self.whole
        kept = [self.large[size] for size in sorted(self.large) if size < first]
        return reduce(merged, kept if self.usual is None else [self.usual, *kept])


def vector_moments(
    vectors: Vectors,
    kinds: Int64s,
    before: VectorMoments | None = None,
    outliers_from: int | None = None,
) -> VectorMoments:
    """Return the moments of [rows, H]; there must be a row.

    Args:
        kinds: the place of each row's kind in `COUNTED_KINDS`: [rows].
        before: those of rows that came before, which say what is large.
        outliers_from: the first class of sizes to set apart, where it is known already.
    """
    rows = vectors.astype(np.float64)
    # A row times itself: einsum takes four times as long.
    squared_norms = (rows[:, None, :] @ rows[:, :, None])[:, 0, 0]
    norms = np.sqrt(squared_norms)
    bins = bins_of(np.sqrt(squared_norms / rows.shape[1]))
    counts = np.bincount(bins, minlength=N_BINS)
    whole = moments_of(rows, norms, kinds)
    if outliers_from is None:
        so_far = counts if before is None else before.rms_counts + counts
        outliers_from = outlier_class(so_far, _LARGE_TIMES)
    classes = classes_of(bins)
    is_usual = classes < outliers_from
    if is_usual.all():
        return VectorMoments(whole, whole, {}, counts)

    def of(chosen: npt.NDArray[np.bool_]) -> Moments:
        return moments_of(vectors[chosen].astype(np.float64), norms[chosen], kinds[chosen])

    usual = None
    if is_usual.any():
        # From what is about the mean of all rows already: to convert them again takes as long as
        # all else together.
        rows[~is_usual] = 0
        usual = moments_about(whole.mean, rows, norms[is_usual], kinds[is_usual])
    if usual is None and is_usual.any():
        usual = of(is_usual)
    return VectorMoments(
        whole,
        usual,
        {int(size): of(classes == size) for size in np.unique(classes[~is_usual])},
        counts,
    )


def merge_all(parts: Iterable[Mapping[str, VectorMoments]]) -> dict[str, VectorMoments]:
    """Merge the moments of several parts of a dataset, vector by vector."""
    of_all: dict[str, VectorMoments] = {}
    for part in parts:
        for name, moments in part.items():
            of_all[name] = _merged(of_all[name], moments) if name in of_all else moments
    return of_all


def _merged(first: VectorMoments, second: VectorMoments) -> VectorMoments:
    whole = merged(first.whole, second.whole)
    if first.usual is first.whole and second.usual is second.whole:
        usual: Moments | None = whole
    elif first.usual is None or second.usual is None:
        usual = second.usual if first.usual is None else first.usual
    else:
        usual = merged(first.usual, second.usual)
    common = {
        size: merged(first.large[size], second.large[size])
        for size in first.large.keys() & second.large.keys()
    }
    return VectorMoments(
        whole,
        usual,
        {**first.large, **second.large, **common},
        first.rms_counts + second.rms_counts,
    )
