"""What carries the energy of a layer's `x`: which dimensions, positions and tokens.

The energy of rows is the sum of the squares of all their values. In a decoder's residual stream a
few dimensions of a few tokens hold most of it, the first position's above all (Sun, Chen, Kolter &
Liu, "Massive Activations in Large Language Models", 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from builder.drawn.rows import DrawnRows, Int32s
from llava_amber_activations.formats.arrow_vectors import Vectors


@dataclass(frozen=True)
class PositionShare:
    """Rows at one position of their prompts.

    Attributes:
        position: index of the token in its prompt, from 0.
        token: the text of the token there, the commonest where samples differ; None where it is not
            known.
        kind: of that token, "" where it is not known.
        share: of the energy of all rows.
        n_rows: at this position.
        mean_norm: Euclidean, of them.
    """

    position: int
    token: str | None
    kind: str
    share: float
    n_rows: int
    mean_norm: float


@dataclass(frozen=True)
class TokenShare:
    """Rows of one token, wherever they stand.

    Attributes:
        token: its text, or `token 42`.
        share: of the energy of all rows.
        n_rows: of this token.
        mean_norm: Euclidean, of them.
    """

    token: str
    share: float
    n_rows: int
    mean_norm: float


@dataclass(frozen=True)
class DimensionShare:
    """One dimension of a vector.

    Attributes:
        dimension: from 0.
        share: of the energy of all rows.
        positions: those that hold the most of this dimension's own energy, the largest first:
            (position, share of the dimension's energy).
    """

    dimension: int
    share: float
    positions: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LayerSinks:
    """What carries the energy of one layer's `x`.

    Attributes:
        layer: whose.
        dimensions: that hold the most energy, the largest first, at most 16.
        top_shares: share of the energy in the 1, 4 and 16 largest dimensions together.
        positions: that hold the most energy, the largest first, at most 8.
        tokens: that hold the most energy, the largest first, at most 8; none where tokens are not
            known.
        n_outliers: rows whose root mean square is over ten times the median.
        outlier_share: of the energy, that is theirs.
        median_norm: Euclidean, of all rows.
    """

    layer: int
    dimensions: tuple[DimensionShare, ...]
    top_shares: tuple[float, float, float]
    positions: tuple[PositionShare, ...]
    tokens: tuple[TokenShare, ...]
    n_outliers: int
    outlier_share: float
    median_norm: float


def layer_sinks(rows: DrawnRows, layer: int) -> LayerSinks | None:
    """Return what carries the energy of a layer's `x`; None where it is not there or is all zeros.
    """
    raise NotImplementedError
