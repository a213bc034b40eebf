"""Grids of patches as places: of a whole picture, of tiles, and of what lies nowhere.

A place is (tile, row, column). Tile 0 is the whole picture, 1, 2, … are tiles in reading order,
whose rows and columns count over all tiles together.
"""

from __future__ import annotations

import torch

from llava_amber_activations.formats.columns import NO_PATCH, WHOLE_PICTURE


def nowhere(n_tokens: int) -> torch.Tensor:
    """Return the places of tokens that are no patch, or of no known place: int64 [n, 3]."""
    return torch.full((n_tokens, 3), NO_PATCH)


def whole(rows: int, columns: int) -> torch.Tensor:
    """Return a whole picture's places in reading order: int64 [rows × columns, 3]."""
    number = torch.arange(rows * columns)
    return torch.stack(
        [torch.full_like(number, WHOLE_PICTURE), number // columns, number % columns], dim=1
    )


def tiled(tile_rows: int, tile_columns: int, rows: int, columns: int) -> torch.Tensor:
    """Return the places of tiles that follow each other, each one's patches in reading order.

    Args:
        tile_rows, tile_columns: how the tiles lie.
        rows, columns: of the patches of one tile.

    Returns:
        int64 [tile_rows × tile_columns × rows × columns, 3].
    """
    one = whole(rows, columns)
    tiles = [divmod(number, tile_columns) for number in range(tile_rows * tile_columns)]
    return torch.cat(
        [
            one + torch.tensor([1 + number, tile_row * rows, tile_column * columns])
            for number, (tile_row, tile_column) in enumerate(tiles)
        ]
    )


def cut(
    rows: int, columns: int, tile_of_row: torch.Tensor, tile_of_column: torch.Tensor, n_across: int
) -> torch.Tensor:
    """Return the places of one grid that lies over tiles, row by row.

    Args:
        tile_of_row, tile_of_column: which row and column of tiles each row and column of the grid
            is in, int64 [rows] and [columns].
        n_across: how many tiles lie beside each other.

    Returns:
        int64 [rows, columns, 3].
    """
    places = whole(rows, columns).reshape(rows, columns, 3)
    places[..., 0] = 1 + tile_of_row[:, None] * n_across + tile_of_column
    return places
