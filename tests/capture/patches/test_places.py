"""Each patch lies where the model looks for it: against gradients and colours, no arithmetic."""

import pytest
from read_by_gradient import looks_of, place_picture
from tiled_models import IMAGE_TOKEN, TILED, unmixed

from capture.model.decoder import find_decoder
from capture.passes.inputs import make_inputs
from capture.patches.layouts import cuts_tiles, patch_places
from capture.samples.pictures import Picture
from capture.samples.queries import Query

# (width, height): square, wide, tall, in between, smaller than a patch.
SIZES = [(40, 40), (97, 33), (30, 110), (120, 80), (9, 7)]


def straight(pixels):
    """Return pictures and tiles as they are, one after the other."""
    return pixels.reshape(-1, *pixels.shape[-3:])


def seen_in_a_batch(make, channels=straight):
    """Return what each token of each picture of a batch looks at, and where we say that it lies."""
    model, processor = make()
    pictures = [place_picture(*size) for size in SIZES]
    queries = [Query(n, n, "", "?" * n) for n in range(len(SIZES))]
    inputs = make_inputs(processor, queries, [Picture(picture, "") for picture in pictures])
    layers = find_decoder(model.base_model).layers
    looks = looks_of(unmixed(model).base_model, layers, inputs, IMAGE_TOKEN, channels)
    sizes = [(height, width) for width, height in SIZES]
    found = patch_places(processor, inputs, sizes, IMAGE_TOKEN)
    assert found.has_tiles == cuts_tiles(processor)
    return looks, [places.tolist() for places in found.of_elements]


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


@pytest.mark.parametrize("make", TILED)
def test_tiles(make):
    looks, places = seen_in_a_batch(make)
    for of_picture, found in zip(looks, places, strict=True):
        pairs = list(zip(found, of_picture, strict=True))
        # A token that looks at nothing is a newline.
        assert all((place == [-1, -1, -1]) == (look is None) for place, look in pairs)
        patches = [(place, look) for place, look in pairs if look is not None]
        check_grid([pair for pair in patches if pair[0][0] == 0])
        tiles = [pair for pair in patches if pair[0][0] > 0]
        if tiles:
            check_grid(tiles)
            check_tiles(tiles)
