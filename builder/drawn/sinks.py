"""What carries the energy of a layer's `x`: which dimensions, positions and tokens.

The energy of rows is the sum of the squares of all their values. In a decoder's residual stream a
few dimensions of a few tokens hold most of it, the first position's above all (Sun, Chen, Kolter &
Liu, "Massive Activations in Large Language Models", 2024).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from builder.drawn.rows import DrawnRows, Int32s
from builder.shards.row_sizes import Float64s
from llava_amber_activations.formats.columns import kind_name
from llava_amber_activations.formats.statistics import OUTLIER_TIMES

TOP_DIMENSIONS = (1, 4, 16)
_MOST_NAMED = 8
_MOST_POSITIONS_OF_A_DIMENSION = 3


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
        dimension_shares: of every dimension, in order: [H].
        position_shares: of every position that has rows: (position, share), ascending.
        n_outliers: rows whose root mean square is over ten times the median.
        outlier_share: of the energy, that is theirs.
        median_norm: Euclidean, of all rows.
    """

    layer: int
    dimensions: tuple[DimensionShare, ...]
    top_shares: tuple[float, ...]
    positions: tuple[PositionShare, ...]
    tokens: tuple[TokenShare, ...]
    dimension_shares: tuple[float, ...]
    position_shares: tuple[tuple[int, float], ...]
    n_outliers: int
    outlier_share: float
    median_norm: float


def layer_sinks(rows: DrawnRows, layer: int) -> LayerSinks | None:
    """Return what carries the energy of a layer's `x`; None where it is not there, or all zeros."""
    vectors = rows.x(layer)
    if vectors is None or not len(vectors):
        return None
    squares = np.square(vectors, dtype=np.float64)
    of_rows, of_dimensions = squares.sum(axis=1), squares.sum(axis=0)
    total = float(of_rows.sum())
    if not total:
        return None
    order = np.argsort(-of_dimensions, kind="stable")
    is_outlier = outliers(of_rows)
    return LayerSinks(
        layer=layer,
        dimensions=tuple(
            DimensionShare(
                int(dimension),
                float(of_dimensions[dimension] / total),
                _positions_of(squares[:, dimension], rows.position),
            )
            for dimension in order[: max(TOP_DIMENSIONS)]
        ),
        top_shares=tuple(float(of_dimensions[order[:n]].sum() / total) for n in TOP_DIMENSIONS),
        positions=_by_position(rows, of_rows, total),
        tokens=_by_token(rows, of_rows, total),
        dimension_shares=tuple((of_dimensions / total).tolist()),
        position_shares=tuple(
            (position, energy / total)
            for position, energy in sorted(_largest(rows.position, of_rows, len(rows)))
        ),
        n_outliers=int(is_outlier.sum()),
        outlier_share=float(of_rows[is_outlier].sum() / total),
        median_norm=float(np.median(np.sqrt(of_rows))),
    )


def outliers(squared_norms: Float64s) -> npt.NDArray[np.bool_]:
    """Tell rows whose norm is over ten times the median: bool [rows]; none where that is 0.

    Args:
        squared_norms: [rows].
    """
    median = np.median(squared_norms)
    is_outlier: npt.NDArray[np.bool_] = (squared_norms > OUTLIER_TIMES**2 * median) & (median > 0)
    return is_outlier


def shares_by_layer(
    sinks: Sequence[LayerSinks], what: Literal["position", "dimension"], most: int = 4
) -> dict[int, list[float]]:
    """Return the shares of the positions, or dimensions, that hold the most energy in any layer.

    Args:
        sinks: of some layers.
        most: how many are wanted.

    Returns:
        A share for each layer, by the position or the dimension, the largest first.
    """
    of_layers = [
        dict(each.position_shares if what == "position" else enumerate(each.dimension_shares))
        for each in sinks
    ]
    largest: dict[int, float] = {}
    for shares in of_layers:
        for number, share in shares.items():
            largest[number] = max(share, largest.get(number, 0.0))
    order = sorted(largest, key=lambda number: (-largest[number], number))
    return {number: [shares[number] for shares in of_layers] for number in order[:most]}


def _largest(numbers: Int32s, energy: Float64s, most: int) -> list[tuple[int, float]]:
    """Return the numbers whose rows have the most energy together, and that energy."""
    found, place = np.unique(numbers, return_inverse=True)
    sums = np.bincount(place, energy)
    order = np.argsort(-sums, kind="stable")[:most]
    return [(int(found[n]), float(sums[n])) for n in order]


def _positions_of(energy: Float64s, positions: Int32s) -> tuple[tuple[int, float], ...]:
    total = float(energy.sum())
    if not total:
        return ()
    largest = _largest(positions, energy, _MOST_POSITIONS_OF_A_DIMENSION)
    return tuple((position, found / total) for position, found in largest)


def _by_position(rows: DrawnRows, energy: Float64s, total: float) -> tuple[PositionShare, ...]:
    found = []
    for position, share in _largest(rows.position, energy, _MOST_NAMED):
        at = np.flatnonzero(rows.position == position)
        tokens = Counter((rows.token_text(row), kind_name(rows.kind[row])) for row in at.tolist())
        (token, kind), _ = tokens.most_common(1)[0]
        norm = float(np.sqrt(energy[at]).mean())
        found.append(PositionShare(position, token, kind, share / total, len(at), norm))
    return tuple(found)


def _by_token(rows: DrawnRows, energy: Float64s, total: float) -> tuple[TokenShare, ...]:
    known = np.flatnonzero(rows.token_id >= 0)
    found = []
    for token_id, share in _largest(rows.token_id[known], energy[known], _MOST_NAMED):
        at = np.flatnonzero(rows.token_id == token_id)
        text = rows.token_text(int(at[0])) or f"token {token_id}"
        norm = float(np.sqrt(energy[at]).mean())
        found.append(TokenShare(text, share / total, len(at), norm))
    return tuple(found)
