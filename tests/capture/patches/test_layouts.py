"""Layouts that tokens tell, by hand; and what is said where nothing tells them."""

import pytest
import torch
from picture_models import IMAGE_TOKEN, NUMBERED, byte_tokenizer, of_pictures
from transformers import Llama4Processor

from capture.patches.layouts import cuts_tiles, patch_places

NOWHERE = [-1, -1, -1]


class PixtralProcessor:
    """Stands for that of the same name, whose layout asks it for nothing."""


class KosmosLike:
    """A processor of no known name."""


class Kosmos2Processor:
    """Stands for that of a model with 64 learned queries."""


def places_of(processor, ids, token=IMAGE_TOKEN, sizes=((30, 40),), **inputs):
    """Return the places of one element, whose prompt is `ids` and padding."""
    ids = torch.tensor([[*ids, 0, 0]])
    mask = torch.ones_like(ids)
    mask[:, -2:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, **inputs}
    (found,) = patch_places(processor, inputs, sizes, token).of_elements
    return found.tolist()


def test_rows_with_breaks():
    row = [IMAGE_TOKEN] * 3
    found = places_of(PixtralProcessor(), [1, *row, 7, *row, 7, *row, 8, 20])
    assert found == [[0, row, column] for row in range(3) for column in range(3)]


class GraniteDoclingProcessor:
    """Stands for that of the same name, which numbers a single tile too."""

    tokenizer = byte_tokenizer(*NUMBERED)


def test_a_single_tile_is_the_whole_picture():
    processor = GraniteDoclingProcessor()
    before, mark = processor.tokenizer.convert_tokens_to_ids([NUMBERED[0], "<row_1_col_1>"])
    found = places_of(processor, [1, before, mark, *[IMAGE_TOKEN] * 4, 20])
    assert found == [[0, row, column] for row in range(2) for column in range(2)]


def test_rows_of_unequal_length_are_no_grid():
    found = places_of(PixtralProcessor(), [1, *[IMAGE_TOKEN] * 3, 7, *[IMAGE_TOKEN] * 2, 8])
    assert found == [NOWHERE] * 5


@pytest.mark.parametrize("tiles", [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_tiles_between_separators(tiles):
    """In the prompt that the processor writes itself, of two by two patches a tile."""
    names = ("image_start", "image_end", "tile_x_separator", "tile_y_separator", "patch", "image")
    tokenizer = byte_tokenizer(*(f"<|{name}|>" for name in names))
    processor = of_pictures(Llama4Processor, None, tokenizer)
    assert cuts_tiles(processor)
    text = processor._prompt_split_image(tiles, 4)
    patch = tokenizer.convert_tokens_to_ids("<|patch|>")
    found = places_of(processor, tokenizer(f"See {text}. Why?")["input_ids"], patch)
    n_rows, n_columns = tiles
    expected = [
        [1 + n_columns * tile_row + tile_column, 2 * tile_row + row, 2 * tile_column + column]
        for tile_row in range(n_rows)
        for tile_column in range(n_columns)
        for row in range(2)
        for column in range(2)
        if tiles != (1, 1)
    ]
    assert found == expected + [[0, row, column] for row in range(2) for column in range(2)]


@pytest.mark.parametrize(
    ("shape", "n_tokens", "grid"),
    [
        ((1, 3, 336, 336), 576, (24, 24)),
        ((1, 3, 336, 672), 1152, (24, 48)),
        ((1, 3, 336, 336), 577, None),
        ((1, 5, 3, 336, 336), 2880, None),
        ((4, 3, 336, 336), 2304, None),
    ],
    ids=[
        "square",
        "wide",
        "with a class token",
        "tiles",
        "tiles that a grid would fit",
    ],
)
def test_one_picture(shape, n_tokens, grid):
    pixels = torch.empty(shape, device="meta")
    found = places_of(KosmosLike(), [IMAGE_TOKEN] * n_tokens, pixel_values=pixels)
    rows, columns = grid or (0, 0)
    expected = [[0, row, column] for row in range(rows) for column in range(columns)]
    assert found == (expected or [NOWHERE] * n_tokens)


def test_learned_queries_lie_nowhere():
    """As many as a square grid would have."""
    pixels = torch.empty((1, 3, 224, 224), device="meta")
    found = places_of(Kosmos2Processor(), [IMAGE_TOKEN] * 64, pixel_values=pixels)
    assert found == [NOWHERE] * 64


def test_merged_patches_and_frames():
    """Qwen2-VL: 1 × 16 × 24 patches, merged two by two; several frames are no one grid."""
    for frames, n_known in ((1, 96), (2, 0)):
        grid = torch.tensor([[frames, 16, 24]])
        found = places_of(KosmosLike(), [IMAGE_TOKEN] * 96 * frames, image_grid_thw=grid)
        assert (
            found[:n_known]
            == [[0, row, column] for row in range(8) for column in range(12)][:n_known]
        )
        assert found[n_known:] == [NOWHERE] * (len(found) - n_known)


def test_a_text_without_a_picture():
    assert places_of(PixtralProcessor(), [1, 20, 21], sizes=()) == []
