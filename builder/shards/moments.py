"""Moments of a stream of vectors, in one stable pass.

Counts, means and sums of squared deviations of two sets of rows merge into those of their union by
the formula of Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances" (1979), eq. 2.1; in float64, whatever the vectors' own type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch

from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.layers import mlp_out_name, x_name
from llava_amber_activations.sources.statistics import Statistics

# The RMS of rows is counted in bins that are equal in the logarithm: 64 to an octave, so that a
# quantile is within 0.6 % of the exact one, over all that float32 holds but its last octaves.
_BINS_PER_OCTAVE = 64
_FIRST_OCTAVE, _LAST_OCTAVE = -40, 40
_N_BINS = _BINS_PER_OCTAVE * (_LAST_OCTAVE - _FIRST_OCTAVE)

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of some rows of one vector.

    Attributes:
        n: rows.
        mean: float64 [H].
        squares: float64 [H], sum of squared deviations from the mean.
        norm_sum: sum of the rows' Euclidean norms.
        rms_counts: int64 [bins], how many rows have their root mean square in each bin.
    """

    n: int
    mean: Float64s
    squares: Float64s
    norm_sum: float
    rms_counts: npt.NDArray[np.int64]

    @property
    def std(self) -> Float64s:
        """Population standard deviation of each dimension: [H]."""
        deviation: Float64s = np.sqrt(self.squares / self.n)
        return deviation

    @property
    def mean_square(self) -> Float64s:
        """Mean square of each dimension, its share of the energy: [H]."""
        return self.squares / self.n + self.mean**2

    def rms_quantiles(self, quantiles: Iterable[float]) -> list[float]:
        """Return quantiles of the rows' root mean square, to the middle of a bin."""
        cumulative = np.cumsum(self.rms_counts)
        bins = (int(np.searchsorted(cumulative, q * self.n)) for q in quantiles)
        return [float(2 ** (_FIRST_OCTAVE + (bin_ + 0.5) / _BINS_PER_OCTAVE)) for bin_ in bins]


def moments_of(vectors: Vectors) -> Moments:
    """Return the moments of [rows, H]; there must be a row."""
    rows = vectors.astype(np.float64)
    mean = rows.mean(axis=0)
    # A row times itself: einsum takes four times as long.
    squared_norms = (rows[:, None, :] @ rows[:, :, None])[:, 0, 0]
    rms = np.sqrt(squared_norms / rows.shape[1])
    rows -= mean
    octaves = np.log2(np.maximum(rms, 2.0**_FIRST_OCTAVE)) - _FIRST_OCTAVE
    bins = np.minimum((octaves * _BINS_PER_OCTAVE).astype(np.int64), _N_BINS - 1)
    return Moments(
        n=len(rows),
        mean=mean,
        squares=np.einsum("rh,rh->h", rows, rows),
        norm_sum=float(np.sqrt(squared_norms).sum()),
        rms_counts=np.bincount(bins, minlength=_N_BINS),
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
        rms_counts=first.rms_counts + second.rms_counts,
    )


def merge_all(parts: Iterable[dict[str, Moments]]) -> dict[str, Moments]:
    """Merge the moments of several parts of a dataset, vector by vector."""

    def merge_two(one: dict[str, Moments], other: dict[str, Moments]) -> dict[str, Moments]:
        common = {name: merged(one[name], other[name]) for name in one.keys() & other.keys()}
        return {**one, **other, **common}

    return reduce(merge_two, parts, {})


def statistics_of(moments: dict[str, Moments], n_layers: int, width: int) -> Statistics:
    """Return the statistics file's tensors; layers without moments are NaN."""
    tensors = {}
    for kind, name_of in (("x", x_name), ("mlp_out", mlp_out_name)):
        mean, std = np.full((2, n_layers, width), np.nan)
        norm = np.full(n_layers, np.nan)
        for layer in range(n_layers):
            if found := moments.get(name_of(layer)):
                mean[layer], std[layer] = found.mean, found.std
                norm[layer] = found.norm_sum / found.n
        for suffix, values in (("mean", mean), ("std", std), ("mean_norm", norm)):
            tensors[f"{kind}_{suffix}"] = torch.from_numpy(values).float()
    return Statistics(**tensors)
