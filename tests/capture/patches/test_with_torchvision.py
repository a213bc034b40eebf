"""Places of the families whose processors take torchvision, where it is installed."""

import pytest

pytest.importorskip("torchvision", reason="these families' processors are made with it")

from looked_at import check_grid, check_tiles, patches_of, seen_in_a_batch, straight
from torchvision_models import cohere2_vision, lfm2_vl, llama4, mistral3, rows_of_tiles


@pytest.mark.parametrize(
    ("make", "channels"), [(cohere2_vision, straight), (lfm2_vl, rows_of_tiles)]
)
def test_the_whole_picture_and_its_tiles(make, channels):
    for pairs in seen_in_a_batch(make, channels):
        of_whole, of_tiles = patches_of(pairs)
        check_grid(of_whole)
        if of_tiles:
            check_grid(of_tiles)
            check_tiles(of_tiles)


def test_rows_with_breaks():
    for pairs in seen_in_a_batch(mistral3):
        of_whole, of_tiles = patches_of(pairs)
        assert len(of_whole) == len(pairs) and not of_tiles
        check_grid(of_whole)


def test_tiles_that_a_picture_does_not_fill():
    """Llama 4: what is right of the picture and below it is padding, which has its places too."""
    for pairs in seen_in_a_batch(llama4):
        of_tiles = [(place, look) for place, look in pairs if place[0] > 0]
        if not of_tiles:
            continue
        check_grid([(place, look) for place, look in pairs if place[0] == 0])
        n_rows, n_columns = (1 + max(place[at] for place, _ in of_tiles) for at in (1, 2))
        assert len({(row, column) for (_, row, column), _ in of_tiles}) == n_rows * n_columns
        shown = [(place, look) for place, look in of_tiles if look is not None]
        check_tiles(shown)
        # Places a patch apart are the same share of the picture apart, from its first corner on.
        for at, axis in ((1, "y"), (2, "x")):
            middles = [(place[at] + 0.5, getattr(look, axis)) for place, look in shown]
            whole = [share / middle for middle, share in middles if middle < max(middles)[0]]
            a_patch = sum(whole) / len(whole)
            assert all(abs(share / a_patch - middle) < 0.4 for middle, share in middles)
