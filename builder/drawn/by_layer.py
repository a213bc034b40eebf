"""Figures of each layer: how large its vectors are, by kind of token, and how far one goes on."""

from __future__ import annotations

from dataclasses import dataclass

from builder.drawn.ridge import RidgeFit
from builder.drawn.rows import DrawnRows
from builder.drawn.sinks import LayerSinks


@dataclass(frozen=True)
class Spread:
    """Where the values of some rows are: the 5th, the 50th and the 95th percentile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class KindNorms:
    """Euclidean norms of one vector's rows of one kind of token.

    Attributes:
        kind: of `COUNTED_KINDS`: text, image, generated or unknown; "all" for every row.
        n_rows: rows of it, at least one.
        mean: of the norms.
        spread: of the norms.
    """

    kind: str
    n_rows: int
    mean: float
    spread: Spread


@dataclass(frozen=True)
class LayerFigures:
    """What is drawn of one layer.

    Attributes:
        layer: L.
        x, mlp_out: norms, "all" first and then each kind that has rows; empty where the vector is
            not there.
        next_layer: the next layer that was drawn and whose `x` is there; L+1 where all are drawn.
        cosine_to_next: between `x` of the layer and of the next one, row by row.
        sinks: what carries the energy of `x`; None where `x` is not there.
        ridge: how much of `mlp_out` a ridge regression on `x` explains; None where one of them is
            not there.
    """

    layer: int
    x: tuple[KindNorms, ...]
    mlp_out: tuple[KindNorms, ...]
    next_layer: int | None
    cosine_to_next: Spread | None
    sinks: LayerSinks | None
    ridge: RidgeFit | None


def layer_figures(rows: DrawnRows, *, with_ridge: bool = True) -> tuple[LayerFigures, ...]:
    """Return the figures of every drawn layer, one layer's vectors in float64 at a time."""
    raise NotImplementedError
