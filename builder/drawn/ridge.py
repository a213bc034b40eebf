"""How much of an MLP's output a ridge regression on its layer's `x` explains, on other samples.

It is what a transcoder must beat: the best map of `x` to `mlp_out` without a nonlinearity.
"""

from __future__ import annotations

from dataclasses import dataclass

from builder.drawn.rows import Int32s
from llava_amber_activations.formats.arrow_vectors import Vectors


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression of `mlp_out` on `x`, tried on samples that it was not fitted to.

    Attributes:
        explained: share of the variance of `mlp_out`, over all its dimensions, that it explains on
            the held-out rows: 1 is all, 0 what their training mean explains, less is worse than
            that. None where there are too few samples or the held-out rows do not vary; then
            `why_not` says so.
        strength: λ, as a multiple of the mean eigenvalue of `x`'s covariance.
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


def ridge_fit(x: Vectors, mlp_out: Vectors, sample: Int32s, seed: int = 0) -> RidgeFit:
    """Fit a ridge regression to three quarters of the samples, and try it on the rest.

    Args:
        x, mlp_out: of the same rows: [rows, H].
        sample: that each row is of: [rows].
        seed: of the choice of samples.
    """
    raise NotImplementedError
