"""How much of an MLP's output a ridge regression on its layer's `x` explains, on other samples.

It is what a transcoder must beat: the best map of `x` to `mlp_out` without a nonlinearity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from builder.drawn.rows import Int32s
from builder.drawn.sinks import outliers
from builder.shards.row_sizes import Float64s
from llava_amber_activations.formats.arrow_vectors import Vectors

LEAST_SAMPLES = 8
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# A quarter of the samples is held out, and by a quarter of the others λ is chosen.
_SHARE = 4
# Multiply-adds of the covariance, or of the rows' products with each other, of the fits together
# that one figure is made of: about ten seconds of two cores.
MOST_WORK = 60_000_000_000
# λ is chosen by so many random directions of `mlp_out`, in which every dimension has its part.
_DIRECTIONS = 64

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression of `mlp_out` on `x`, tried on samples that it was not fitted to.

    Attributes:
        explained: share of the variance of `mlp_out`, over all its dimensions, that it explains on
            the held-out rows: 1 is all, 0 what their training mean explains, less is worse than
            that. None where there are too few samples or the held-out rows do not vary; then
            `why_not` says so.
        strength: λ, as a multiple of the mean eigenvalue of the correlations of `x` that are not 0.
        n_train_rows, n_train_samples: that it was fitted to.
        n_held_out_rows, n_held_out_samples: that it was tried on.
        n_outliers: rows that were left out of both, because the root mean square of their `x` or
            their `mlp_out` is over ten times the median: few of them would be all that is fitted.
        why_not: a sentence where nothing is explained; None otherwise.
    """

    explained: float | None
    strength: float | None
    n_train_rows: int
    n_train_samples: int
    n_held_out_rows: int
    n_held_out_samples: int
    n_outliers: int
    why_not: str | None = None


def ridge_fit(
    x: Vectors, mlp_out: Vectors, sample: Int32s, *, most_work: int = MOST_WORK, seed: int = 0
) -> RidgeFit:
    """Fit a ridge regression to three quarters of the samples, and try it on the rest.

    Each dimension of `x` is divided by its standard deviation first, so that λ is the same to all.
    λ is chosen by a quarter of the training samples, from `STRENGTHS`; then all of them are fitted.
    Of many rows so many are drawn that the fit is no more than `most_work`.

    Args:
        x, mlp_out: of the same rows: [rows, H].
        sample: that each row is of: [rows].
        most_work: multiply-adds of the covariance, or of the rows' products with each other.
        seed: of the choice of samples, and of rows.
    """
    is_outlier = outliers(_squared_norms(x)) | outliers(_squared_norms(mlp_out))
    kept = np.flatnonzero(~is_outlier)
    n_outliers = len(x) - len(kept)
    random = np.random.default_rng(seed)
    samples = random.permutation(np.unique(sample[kept]))
    if len(samples) < LEAST_SAMPLES:
        why_not = (
            f"{len(samples)} samples were drawn, and a regression that is to be tried on others "
            f"takes {LEAST_SAMPLES}"
        )
        return RidgeFit(None, None, 0, 0, 0, 0, n_outliers, why_not)
    n_held_out = len(samples) // _SHARE
    held_out, training = samples[:n_held_out], samples[n_held_out:]
    n_choosing = len(training) // _SHARE
    fitting, choosing = training[n_choosing:], training[:n_choosing]
    most = _most_rows(x.shape[1], most_work)
    fit_rows, choice_rows, train_rows, test_rows = (
        _drawn(random, kept[np.isin(sample[kept], of)], most)
        for of in (fitting, choosing, training, held_out)
    )
    directions = random.standard_normal((mlp_out.shape[1], _DIRECTIONS))
    tried = _explained(
        x[fit_rows],
        mlp_out[fit_rows] @ directions,
        x[choice_rows],
        mlp_out[choice_rows] @ directions,
        STRENGTHS,
    )
    strength = STRENGTHS[int(np.argmax(tried))]
    (explained,) = _explained(
        x[train_rows],
        mlp_out[train_rows].astype(np.float64),
        x[test_rows],
        mlp_out[test_rows].astype(np.float64),
        (strength,),
    )
    is_known = bool(np.isfinite(explained))
    return RidgeFit(
        explained=float(explained) if is_known else None,
        strength=strength if is_known else None,
        n_train_rows=len(train_rows),
        n_train_samples=len(training),
        n_held_out_rows=len(test_rows),
        n_held_out_samples=len(held_out),
        n_outliers=n_outliers,
        why_not=None if is_known else "mlp_out is the same in all rows that were held out",
    )


def _most_rows(width: int, most_work: int) -> int:
    """Return how many rows a fit may have: its work is width · rows · the lesser of the two."""
    return max(math.isqrt(most_work // width), most_work // width**2, LEAST_SAMPLES)


def _drawn(random: np.random.Generator, rows: Rows, most: int) -> Rows:
    return rows if len(rows) <= most else np.sort(random.choice(rows, most, replace=False))


def _explained(
    x: Vectors, y: Float64s, held_out_x: Vectors, held_out_y: Float64s, strengths: Sequence[float]
) -> Float64s:
    """Return the share of the variance of held-out `y` that each λ explains; NaN where it is 0.

    A regression of `y` on `x` is solved by dimensions or by rows, whichever are fewer (Saunders,
    Gammerman & Vovk, "Ridge Regression Learning Algorithm in Dual Variables", 1998).
    """
    inputs, tests = torch.from_numpy(x).double(), torch.from_numpy(held_out_x).double()
    mean, scale = inputs.mean(0), inputs.std(0, correction=0)
    # What never varies is 0 when its mean is taken off, whatever it is divided by.
    scale[scale == 0] = 1
    inputs, tests = inputs.sub_(mean).div_(scale), tests.sub_(mean).div_(scale)
    outputs, wanted = torch.from_numpy(y), torch.from_numpy(held_out_y)
    y_mean = outputs.mean(0)
    outputs, wanted = outputs - y_mean, wanted - y_mean
    if len(inputs) < inputs.shape[1]:
        products, across, right = inputs @ inputs.T, tests @ inputs.T, outputs
    else:
        products, across, right = inputs.T @ inputs, tests, inputs.T @ outputs
    mean_eigenvalue = float(products.trace()) / min(inputs.shape) or 1.0
    total = wanted.square().sum()
    found = []
    for strength in strengths:
        regularised = products.clone()
        regularised.diagonal().add_(strength * mean_eigenvalue)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(regularised))
        missed = wanted - across @ solution
        found.append(float(1 - missed.square().sum() / total) if total else np.nan)
    return np.array(found)


def _squared_norms(vectors: Vectors) -> Float64s:
    rows = vectors.astype(np.float64)
    squares: Float64s = np.einsum("rh,rh->r", rows, rows)
    return squares
