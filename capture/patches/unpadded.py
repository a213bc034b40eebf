"""LLaVA-NeXT and LLaVA-OneVision: the whole picture, then one grid of all tiles, without padding.

    576 patches of the whole | row 0 of the grid, newline | row 1, newline | …

The picture is fitted into tiles and padded to fill them; the rows or columns of features that are
padding alone are left out, and OneVision shrinks a grid that is too large.
"""

from __future__ import annotations

from math import isqrt, sqrt
from typing import Any

import torch
from transformers.image_processing_utils import select_best_resolution

from capture.patches.grids import cut, nowhere, whole
from capture.patches.seen_picture import SeenPicture

_ANY_RESOLUTION = "anyres_max_"
# OneVision shrinks a grid whose sides are more than this above what it allows.
_SHRUNK_ABOVE = 1.1


def unpadded(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of the whole picture and of the grid; newlines are no patch.

    The arithmetic is that of `unpad_image` and `pack_image_features` in transformers'
    `modeling_llava_next` and `modeling_llava_onevision`.
    """
    pixels = seen.inputs["pixel_values"].shape[-1]
    n_whole = getattr(processor, "num_image_tokens", None)
    side = isqrt(n_whole) if n_whole else pixels // processor.patch_size
    height, width = select_best_resolution(
        seen.size, processor.image_processor.image_grid_pinpoints
    )
    rows, columns = height // pixels * side, width // pixels * side
    top, left = _padding(seen.size, rows, columns)
    rows, columns = rows - 2 * top, columns - 2 * left
    shown_rows, shown_columns = _shrunk(rows, columns, processor, side)
    grid = cut(
        *(shown_rows, shown_columns),
        _tile_of(shown_rows, rows, top, side),
        _tile_of(shown_columns, columns, left, side),
        width // pixels,
    )
    newlines = nowhere(shown_rows)[:, None]
    return torch.cat([whole(side, side), torch.cat([grid, newlines], dim=1).flatten(0, 1)])


def _padding(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Return how many rows of features above a picture, and columns before it, are padding."""
    height, width = size
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _shrunk(rows: int, columns: int, processor: Any, side: int) -> tuple[int, int]:
    allowed = getattr(processor, "vision_aspect_ratio", None)
    if allowed is None:
        return rows, columns
    most = int(allowed.removeprefix(_ANY_RESOLUTION))
    ratio = sqrt(rows * columns / (most * side**2))
    if ratio <= _SHRUNK_ABOVE:
        return rows, columns
    return int(rows // ratio), int(columns // ratio)


def _tile_of(n_shown: int, n: int, padding: int, side: int) -> torch.Tensor:
    """Return which tile the middle of each shown row or column is in: int64 [n_shown]."""
    middle = (2 * torch.arange(n_shown) + 1) * n // (2 * n_shown)
    return (middle + padding) // side
