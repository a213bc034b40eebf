"""What each token of a picture looks at, beside where it is said to lie."""

import pytest
from picture_models import unmixed
from read_by_gradient import looks_of, place_picture

from capture.passes.inputs import make_inputs
from capture.patches.layouts import cuts_tiles, patch_places
from capture.samples.pictures import Picture
from capture.samples.queries import Query

# (width, height): of three shapes, and one smaller than two patches.
SIZES = [(60, 40), (97, 33), (30, 90), (9, 7)]


def straight(pixels):
    """Return pictures and tiles as they are, one after the other."""
    return pixels.reshape(-1, *pixels.shape[-3:])


def seen_in_a_batch(make, channels=straight):
    """Return of each picture of a batch (place, look) of its tokens, where they look at something.

    A token that looks at nothing, such as a newline, must be of no place, and no other.
    """
    try:
        model, processor = make()
    except ImportError as error:
        pytest.skip(f"its processor takes what is not installed: {error}")
    token = model.config.image_token_id
    pictures = [place_picture(*size) for size in SIZES]
    queries = [Query(n, n, "", "?" * n) for n in range(len(SIZES))]
    inputs = make_inputs(processor, queries, [Picture(picture, "") for picture in pictures])
    decoder = model.get_decoder()
    layers = getattr(decoder, "model", decoder).layers
    looks = looks_of(unmixed(model), layers, inputs, token, channels)
    found = patch_places(processor, inputs, [(height, width) for width, height in SIZES], token)
    assert found.has_tiles == cuts_tiles(processor)
    return [
        list(zip(places.tolist(), of_picture, strict=True))
        for places, of_picture in zip(found.of_elements, looks, strict=True)
    ]


def patches_of(pairs):
    """Return the patches of the whole picture, and those of tiles; the rest looks at nothing."""
    assert all((place == [-1, -1, -1]) == (look is None) for place, look in pairs)
    patches = [(place, look) for place, look in pairs if look is not None]
    return [
        [pair for pair in patches if (pair[0][0] > 0) == of_tiles] for of_tiles in (False, True)
    ]


def check_grid(patches):
    """Check that patches fill a grid once, and that each looks at the middle of its place."""
    n_rows, n_columns = (1 + max(place[at] for place, _ in patches) for at in (1, 2))
    cells = [(row, column) for row in range(n_rows) for column in range(n_columns)]
    assert sorted((row, column) for (_, row, column), _ in patches) == cells
    for (_, row, column), look in patches:
        assert abs(look.x * n_columns - column - 0.5) < 0.4
        assert abs(look.y * n_rows - row - 0.5) < 0.4


def check_tiles(patches):
    """Check that tiles are numbered in reading order, each of them one of the model's own."""
    places, own = {}, {}
    for (tile, row, column), look in patches:
        places.setdefault(tile, []).append((row, column))
        own.setdefault(tile, set()).add(look.tile)
    in_order = sorted(places, key=lambda tile: min(places[tile]))
    assert in_order == list(range(1, 1 + len(places)))
    assert all(len(tiles) == 1 for tiles in own.values())
    assert len(set.union(*own.values())) == len(own)
