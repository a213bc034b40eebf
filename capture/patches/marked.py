"""Tiles and rows that tokens between them tell apart."""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

import torch

from capture.patches.grids import tiled, whole
from capture.patches.seen_picture import SeenPicture

# Idefics3 and SmolVLM write <row_1_col_2> before a tile, LFM2-VL <|img_row_1_col_2|>.
_ROW_AND_COLUMN = re.compile(r"row_(\d+)_col_(\d+)\|?>$")
_MOST_MARK_TOKENS = 32


def rows_with_breaks(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of a picture whose rows end with a token of their own (Pixtral)."""
    lengths = {stop - start for start, stop in seen.runs()}
    return whole(len(seen.runs()), lengths.pop()) if len(lengths) == 1 else None


def numbered_tiles(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of tiles that the prompt numbers, and of the whole picture after them.

    Idefics3, SmolVLM: `<row_1_col_1>` before each tile, `<global-img>` before the whole.
    """
    lie = _how_tiles_lie(processor, seen)
    return None if lie is None else tiles_then_whole(seen, *lie)


def numbered_tiles_of_shapes(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the same where the whole picture keeps its shape (LFM2-VL).

    `spatial_shapes` says the (rows, columns) of each tile and each whole picture of the batch, one
    after the other, before they are merged.
    """
    lie, runs = _how_tiles_lie(processor, seen), seen.runs()
    if lie is None or len(runs) != lie[0] * lie[1] + 1:
        return None
    merged = seen.inputs["spatial_shapes"] // processor.image_processor.downsample_factor
    shapes = merged[seen.n_runs_before :][: len(runs)].tolist()
    last = whole(*shapes[-1])
    return torch.cat([tiled(*lie, *shapes[0]), last]) if len(runs) > 1 else last


def separated_tiles(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of tiles with tokens between tiles and after rows of them (Llama 4).

    The whole picture comes last, and alone where there is one tile.
    """
    n_tiles, tile_rows = len(seen.runs()) - 1, _count(processor, seen, processor.tile_global_token)
    return tiles_then_whole(seen, tile_rows, n_tiles // tile_rows if tile_rows else 0)


def tiles_after_whole(processor: Any, seen: SeenPicture) -> torch.Tensor | None:
    """Place the patches of the whole picture, then of tiles with tokens between them (Ovis 2)."""
    n_tiles = len(seen.runs()) - 1
    tile_rows = 1 + _count(processor, seen, "<IMG_ROW>") if n_tiles else 0
    places = tiles_then_whole(seen, tile_rows, n_tiles // tile_rows if tile_rows else 0)
    return None if places is None else places.roll(len(places) // (n_tiles + 1), dims=0)


def tiles_then_whole(seen: SeenPicture, tile_rows: int, tile_columns: int) -> torch.Tensor | None:
    """Place tiles of equal squares of patches, one after the other, and the whole after them.

    Args:
        tile_rows, tile_columns: how the tiles lie; 0 where there is the whole picture alone.

    Returns:
        None where the tokens are not those of so many squares.
    """
    n_squares = tile_rows * tile_columns + 1
    side = isqrt(seen.n_tokens // n_squares)
    if n_squares * side**2 != seen.n_tokens:
        return None
    last = whole(side, side)
    return torch.cat([tiled(tile_rows, tile_columns, side, side), last]) if tile_rows else last


def _count(processor: Any, seen: SeenPicture, token: str) -> int:
    return int((seen.ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())


def _how_tiles_lie(processor: Any, seen: SeenPicture) -> tuple[int, int] | None:
    """Return how many rows and columns of numbered tiles there are: (0, 0) for none.

    None where they do not come first, or not in reading order.
    """
    numbers = [_row_and_column(processor, seen, start) for start, _ in seen.runs()]
    tiles = [number for number in numbers if number is not None]
    if not tiles:
        return 0, 0
    tile_rows, tile_columns = map(max, zip(*tiles, strict=True))
    reading_order = [(1 + n // tile_columns, 1 + n % tile_columns) for n in range(len(tiles))]
    in_order = tiles == reading_order == numbers[: len(tiles)]
    # One tile and nothing after it is the whole picture (Granite-Docling).
    if len(numbers) == 1:
        return 0, 0
    return (tile_rows, tile_columns) if in_order else None


def _row_and_column(processor: Any, seen: SeenPicture, start: int) -> tuple[int, int] | None:
    before = seen.ids[max(start - _MOST_MARK_TOKENS, 0) : start].tolist()
    found = _ROW_AND_COLUMN.search(processor.tokenizer.decode(before))
    return None if found is None else (int(found[1]), int(found[2]))
