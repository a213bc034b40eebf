"""What the card says a dataset looks like: figures of its statistics, and of a few rows of it.

All of it is taken from the dataset's own files, so that the card says the same wherever it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from builder.drawn.by_layer import row_norms
from builder.drawn.patches import PatchMap, patch_maps
from builder.drawn.row_ranges import guide_shards
from builder.drawn.rows import DrawnRows, DrawnSample, draw_rows
from builder.drawn.sinks import LayerSinks, layer_sinks
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import IMAGE_PATCH, NO_PATCH, kind_name
from llava_amber_activations.formats.statistics import COUNTED_KINDS
from llava_amber_activations.sources.source import Source
from llava_amber_activations.sources.statistics import (
    RowStatistics,
    Statistics,
    read_statistics,
)

# Of `x`, before compression: what a card may read of a dataset that may be as large as it likes.
CARD_BYTES = 48_000_000
# A share of the energy that rises by so much from one layer to the next has jumped.
_JUMP = 0.1
_EXAMPLE_LAYERS = 4
_AROUND = 4


@dataclass(frozen=True)
class KindLine:
    """One kind of token, over all rows of the dataset.

    Attributes:
        kind: of `COUNTED_KINDS`.
        n_rows: of it.
        x, mlp_out: mean norm at each layer of the model; NaN where the vector is not there.
        usual_x, usual_mlp_out: the same without outliers; of all rows where an earlier release
            built the dataset.
    """

    kind: str
    n_rows: int
    x: tuple[float, ...]
    mlp_out: tuple[float, ...]
    usual_x: tuple[float, ...]
    usual_mlp_out: tuple[float, ...]


@dataclass(frozen=True)
class EnergyJump:
    """Where the largest dimension's share of the energy of `x` rises the most, over all rows.

    Attributes:
        before, layer: the layer before it, and after.
        share_before, share: of the dimension that is the largest there.
        dimension: the largest at `layer`.
        positions: that hold the most of its energy at `layer`, of the drawn rows: (position, share
            of the dimension's energy); none where samples have one row each.
    """

    before: int
    layer: int
    share_before: float
    share: float
    dimension: int
    positions: tuple[tuple[int, float], ...]

    @property
    def is_jump(self) -> bool:
        """Whether it is more than a step among others."""
        return self.share - self.share_before >= _JUMP


@dataclass(frozen=True)
class ExampleRow:
    """One row, as a person reads it.

    Attributes:
        sample, id: of its sample.
        image: file name; "" where it is not known.
        query: what was asked; None where the dataset does not say.
        position: of the token in its prompt.
        token: its text, or its number; None where nothing is known.
        before, after: the texts of the tokens around it, of the drawn rows.
        kind: of token; "" where it is not known.
        patch: row and column, where it is a patch.
        norms: Euclidean norm of `x` at some layers: (layer, norm).
    """

    sample: int
    id: int
    image: str
    query: str | None
    position: int
    token: str | None
    before: tuple[str, ...]
    after: tuple[str, ...]
    kind: str
    patch: tuple[int, int] | None
    norms: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class CardLook:
    """What the card shows.

    Attributes:
        x_norms, mlp_out_norms: mean norm at each layer, over all rows: (layer, norm); without the
            layers that are not there.
        kinds: that have rows, in the order of `COUNTED_KINDS`.
        energy: share of the energy of `x` in each layer's largest dimension, over all rows: (layer,
            share, dimension); none in a dataset without `x`.
        jump: of that share; None where there are no two layers side by side.
        sinks: of the drawn rows, by layer.
        patches: maps of the drawn rows, by layer; none where no row is a patch.
        examples: a row of a patch and one of the text, or of the answer, where there are such.
        n_drawn_samples, n_drawn_rows: that `sinks`, `patches` and `jump.positions` are of.
        n_samples, n_rows: of the dataset.
        one_row_a_sample: whether no drawn sample has two rows.
    """

    x_norms: tuple[tuple[int, float], ...]
    mlp_out_norms: tuple[tuple[int, float], ...]
    kinds: tuple[KindLine, ...]
    energy: tuple[tuple[int, float, int], ...]
    jump: EnergyJump | None
    sinks: tuple[LayerSinks, ...]
    patches: tuple[PatchMap, ...]
    examples: tuple[ExampleRow, ...]
    n_drawn_samples: int
    n_drawn_rows: int
    n_samples: int
    n_rows: int
    one_row_a_sample: bool


def look_at(source: Source) -> CardLook | None:
    """Look at a dataset; None where it has no vectors of layers.

    Raises:
        ActivationsError: a file of it is missing or damaged.
    """
    if not source.manifest.n_rows or not guide_shards(source):
        return None
    statistics = read_statistics(source)
    energy = _energy(statistics)
    steps = [
        (after[1] - before[1], before, after)
        for before, after in pairwise(energy)
        if after[0] == before[0] + 1
    ]
    steepest = max(steps, key=lambda step: step[0], default=None)
    always = () if steepest is None else (steepest[2][0],)
    rows = draw_rows(source, max_bytes=CARD_BYTES, always=always, mlp_out=False)
    if rows is None:
        return None
    sinks = tuple(found for layer in rows.layers if (found := layer_sinks(rows, layer)))
    one_row = all(len(sample.rows) == 1 for sample in rows.samples)
    jump = None
    if steepest is not None:
        _, (before, share_before, _), (layer, share, dimension) = steepest
        positions = () if one_row else _positions(sinks, layer, dimension)
        jump = EnergyJump(before, layer, share_before, share, dimension, positions)
    return CardLook(
        x_norms=_by_layer(statistics.x_mean_norm),
        mlp_out_norms=_by_layer(statistics.mlp_out_mean_norm),
        kinds=_kinds(statistics),
        energy=energy,
        jump=jump,
        sinks=sinks,
        patches=patch_maps(rows),
        examples=_examples(rows),
        n_drawn_samples=len(rows.samples),
        n_drawn_rows=len(rows),
        n_samples=rows.n_samples,
        n_rows=rows.n_rows,
        one_row_a_sample=one_row,
    )


def _by_layer(norms: torch.Tensor) -> tuple[tuple[int, float], ...]:
    # NaN where the layer is not there.
    return tuple((layer, norm) for layer, norm in enumerate(norms.tolist()) if norm == norm)


def _kinds(statistics: Statistics) -> tuple[KindLine, ...]:
    found = []
    usual = _without_outliers(statistics)
    for code, kind in enumerate(COUNTED_KINDS):
        n_rows = int(statistics.x_count_by_kind[:, code].max())
        if not n_rows:
            continue
        norms = [
            tuple(by_kind[:, code].tolist())
            for of in (statistics, usual)
            for by_kind in (of.x_mean_norm_by_kind, of.mlp_out_mean_norm_by_kind)
        ]
        found.append(KindLine(kind, n_rows, *norms))
    return tuple(found)


def _without_outliers(statistics: Statistics) -> RowStatistics:
    """Return the robust statistics; those of all rows where an earlier release made the dataset."""
    try:
        return statistics.robust
    except ActivationsError:
        return statistics


def _energy(statistics: Statistics) -> tuple[tuple[int, float, int], ...]:
    """Return each layer's largest dimension and its share of the mean square of `x`."""
    squares = statistics.x_std.double().square() + statistics.x_mean.double().square()
    found = []
    for layer, of_layer in enumerate(squares):
        total = float(of_layer.sum())
        # NaN where the layer is not there.
        if total > 0:
            dimension = int(of_layer.argmax())
            found.append((layer, float(of_layer[dimension]) / total, dimension))
    return tuple(found)


def _positions(
    sinks: Sequence[LayerSinks], layer: int, dimension: int
) -> tuple[tuple[int, float], ...]:
    for found in sinks:
        for share in found.dimensions:
            if (found.layer, share.dimension) == (layer, dimension):
                return share.positions
    return ()


def _examples(rows: DrawnRows) -> tuple[ExampleRow, ...]:
    """Read a patch in the middle of the first picture, and the last row of its sample."""
    sample = rows.samples[0]
    patches = [row for row in sample.rows if rows.patch_row[row] != NO_PATCH]
    others = [row for row in sample.rows if rows.kind[row] != IMAGE_PATCH]
    chosen = [*patches[len(patches) // 2 :][:1], *others[-1:]]
    return tuple(_example(rows, sample, row) for row in chosen)


def _example(rows: DrawnRows, sample: DrawnSample, row: int) -> ExampleRow:
    around = range(max(sample.rows.start, row - _AROUND), min(sample.rows.stop, row + _AROUND + 1))
    # Drawn positions need not be neighbours.
    near = {
        other: rows.token_text(other) or ""
        for other in around
        if rows.tokens is not None and rows.position[other] - rows.position[row] == other - row
    }
    with_x = [layer for layer in rows.layers if rows.x(layer) is not None]
    n_layers = min(_EXAMPLE_LAYERS, len(with_x))
    layers = [with_x[round(n)] for n in np.linspace(0, len(with_x) - 1, n_layers)]
    patch = int(rows.patch_row[row]), int(rows.patch_col[row])
    norms = []
    for layer in layers:
        x = rows.x(layer)
        assert x is not None
        norms.append((layer, float(row_norms(x[row : row + 1])[0])))
    return ExampleRow(
        sample=sample.sample,
        id=sample.id,
        image=sample.image,
        query=sample.query,
        position=int(rows.position[row]),
        token=rows.token_text(row),
        before=tuple(text for other, text in near.items() if other < row),
        after=tuple(text for other, text in near.items() if other > row),
        kind=kind_name(int(rows.kind[row])),
        patch=None if NO_PATCH in patch else patch,
        norms=tuple(norms),
    )
