"""Tiles that nothing in a model's inputs counts: how many there are is decided by a picture's size.

InternVL, Aya Vision, Cohere 2 Vision: a picture is stretched over the canvas of tiles that is most
like it, and comes whole after them; where one tile is most like it, that is the whole picture.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from capture.patches.marked import tiles_then_whole
from capture.patches.seen_picture import SeenPicture


def tiles_on_canvas(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of the tiles, in reading order, and of the whole picture after them.

    How many tiles there are is asked of the function that the image processor asks.
    """
    if len(seen.inputs["pixel_values"]) == seen.n_elements:
        return tiles_then_whole(seen, 0, 0)
    made = processor.image_processor
    size = made.size
    canvas = sys.modules[type(made).__module__].get_optimal_tiled_canvas
    tile_columns, tile_rows = canvas(
        seen.size, (size["height"], size["width"]), made.min_patches, made.max_patches
    )
    if tile_rows * tile_columns == 1:
        return tiles_then_whole(seen, 0, 0)
    return tiles_then_whole(seen, int(tile_rows), int(tile_columns))
