"""Where on the pictures the stream is large: its mean norm at each patch, by layer."""

from __future__ import annotations

from dataclasses import dataclass

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
    raise NotImplementedError
