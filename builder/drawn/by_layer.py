"""Figures of each layer: how large its vectors are, by kind of token, and how far one goes on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from builder.drawn.ridge import MOST_WORK, RidgeFit, ridge_fit
from builder.drawn.rows import DrawnRows, Int32s
from builder.drawn.sinks import LayerSinks, layer_sinks
from builder.shards.row_sizes import Float64s
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.formats.statistics import COUNTED_KINDS


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
        kind: of `COUNTED_KINDS`; "all" for every row.
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
    """Return the figures of every drawn layer, one layer's vectors in float64 at a time.

    Args:
        with_ridge: fit the regressions too, which take most of the time.
    """
    with_x = [layer for layer in rows.layers if rows.x(layer) is not None]
    after = dict(pairwise(with_x))
    found = []
    for layer in rows.layers:
        x, mlp_out, next_layer = rows.x(layer), rows.mlp_out(layer), after.get(layer)
        next_x = None if next_layer is None else rows.x(next_layer)
        found.append(
            LayerFigures(
                layer=layer,
                x=() if x is None else _norms_by_kind(x, rows.kind),
                mlp_out=() if mlp_out is None else _norms_by_kind(mlp_out, rows.kind),
                next_layer=next_layer,
                cosine_to_next=None if x is None or next_x is None else _spread(cosines(x, next_x)),
                sinks=layer_sinks(rows, layer),
                ridge=ridge_fit(x, mlp_out, rows.sample, most_work=MOST_WORK // len(rows.layers))
                if with_ridge and x is not None and mlp_out is not None
                else None,
            )
        )
    return tuple(found)


def row_norms(vectors: Vectors) -> Float64s:
    """Return the Euclidean norm of each row: float64 [rows]."""
    norms: Float64s = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1))
    return norms


def cosines(first: Vectors, second: Vectors) -> Float64s:
    """Return the cosine of each row of two vectors: float64 [rows]; 0 where one is all zeros."""
    products = np.einsum("rh,rh->r", first.astype(np.float64), second.astype(np.float64))
    norms = row_norms(first) * row_norms(second)
    found: Float64s = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    return found


def _norms_by_kind(vectors: Vectors, kinds: Int32s) -> tuple[KindNorms, ...]:
    norms = row_norms(vectors)
    # The code of a kind that is not known is -1, and its name the last.
    chosen = {"all": norms} | {
        name: norms[kinds == (code if name != COUNTED_KINDS[-1] else -1)]
        for code, name in enumerate(COUNTED_KINDS)
    }
    return tuple(
        KindNorms(kind, len(of_kind), float(of_kind.mean()), _spread(of_kind))
        for kind, of_kind in chosen.items()
        if len(of_kind)
    )


def _spread(values: Float64s) -> Spread:
    return Spread(*(float(value) for value in np.percentile(values, (5, 50, 95))))
