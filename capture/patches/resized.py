"""Pictures that a model sees whole, as one grid of patches."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch

from capture.patches.grids import whole
from capture.patches.seen_picture import SeenPicture


def resized(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of one resized picture, whose sides the grid is in proportion to.

    Three ways of saying its sides are known: `image_grid_thw` of the Qwen2-VL family, whose
    neighbouring patches are merged; `image_position_ids` of Gemma 4, (x, y) of each patch before
    they are pooled; and the shape of the one picture that an element has.

    Returns:
        None where the tokens form no one grid.
    """
    inputs = seen.inputs
    if "image_grid_thw" in inputs:
        frames, height, width = inputs["image_grid_thw"][seen.element].tolist()
        if frames != 1:
            return None
    elif "image_position_ids" in inputs:
        width, height = (inputs["image_position_ids"][seen.element].amax(dim=0) + 1).tolist()
    elif (pixels := inputs.get("pixel_values")) is not None and pixels.ndim == 4:
        # More pictures than elements are tiles; pictures with sizes of their own are padded.
        if len(pixels) != seen.n_elements or "image_sizes" in inputs:
            return None
        height, width = pixels.shape[2:]
    else:
        return None
    rows = isqrt(seen.n_tokens * height // width)
    columns = seen.n_tokens // rows if rows else 0
    if rows * columns != seen.n_tokens or rows * width != columns * height:
        return None
    return whole(rows, columns)


def padded(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of a picture that is padded to the largest of its batch (LightOnOCR)."""
    height, width = seen.inputs["image_sizes"][seen.element].tolist()
    size = processor.effective_patch_size
    return whole(height // size, width // size)
