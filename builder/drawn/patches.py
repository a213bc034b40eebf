"""Where on the pictures the stream is large: its mean norm at each patch, by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from builder.drawn.by_layer import row_norms
from builder.drawn.rows import DrawnRows


@dataclass(frozen=True)
class PatchMap:
    """Mean norm of a layer's `x` at each patch of the pictures.

    Attributes:
        layer: whose.
        norms: mean Euclidean norm at [patch_row][patch_col], over the samples that have a patch
            there; None where none has.
        n_samples: that have patches.
    """

    layer: int
    norms: tuple[tuple[float | None, ...], ...]
    n_samples: int


def patch_maps(rows: DrawnRows) -> tuple[PatchMap, ...]:
    """Return the map of every drawn layer whose `x` is there; none where no row has a patch.

    Pictures may have grids of several sizes: a patch stands at its own row and column.
    """
    patches = np.flatnonzero((rows.patch_row >= 0) & (rows.patch_col >= 0))
    if not len(patches):
        return ()
    patch_row, patch_col = rows.patch_row[patches], rows.patch_col[patches]
    shape = int(patch_row.max()) + 1, int(patch_col.max()) + 1
    place = patch_row.astype(np.int64) * shape[1] + patch_col
    counts = np.bincount(place, minlength=shape[0] * shape[1])
    n_samples = len(np.unique(rows.sample[patches]))
    maps = []
    for layer in rows.layers:
        x = rows.x(layer)
        if x is None:
            continue
        sums = np.bincount(place, row_norms(x[patches]), len(counts))
        means = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
        grid = tuple(tuple(means[at : at + shape[1]]) for at in range(0, len(means), shape[1]))
        maps.append(PatchMap(layer, grid, n_samples))
    return tuple(maps)
