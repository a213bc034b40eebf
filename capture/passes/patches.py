"""Where the patches of a picture lie."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch


def patch_grid(inputs: Mapping[str, torch.Tensor], element: int, n_tokens: int) -> tuple[int, int]:
    """Return (rows, columns) of the grid that an element's image tokens form, in reading order.

    Two ways of saying it are known: `image_grid_thw` of the Qwen2-VL family, whose neighbouring
    patches are merged, and one resized picture, whose sides the grid is in proportion to.

    Args:
        inputs: a batch, one picture an element.
        element: which one.
        n_tokens: its image tokens.

    Returns:
        (0, 0) where the tokens form no one grid: tiles, or separators between rows.
    """
    if "image_grid_thw" in inputs:
        _, height, width = inputs["image_grid_thw"][element].tolist()
    elif (pixels := inputs.get("pixel_values")) is not None and pixels.ndim == 4:
        height, width = pixels.shape[2:]
    else:
        return 0, 0
    rows = isqrt(n_tokens * height // width)
    columns = n_tokens // rows if rows else 0
    if rows * columns != n_tokens or rows * width != columns * height:
        return 0, 0
    return rows, columns
