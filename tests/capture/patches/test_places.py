"""Each patch lies where the model looks for it: against gradients and colours, no arithmetic."""

import pytest
from canvas_models import STRETCHED
from looked_at import check_grid, check_tiles, patches_of, seen_in_a_batch, straight
from tiled_models import TILED
from untiled_models import FLAT, MERGING, colours_last, gemma4, patches_of_frames


@pytest.mark.parametrize("make", [*TILED, *STRETCHED])
def test_the_whole_picture_and_its_tiles(make):
    cut = 0
    for pairs in seen_in_a_batch(make):
        of_whole, of_tiles = patches_of(pairs)
        check_grid(of_whole)
        if of_tiles:
            cut += 1
            check_grid(of_tiles)
            check_tiles(of_tiles)
    assert cut >= 3


CHANNELS = {
    **dict.fromkeys(FLAT, straight),
    **dict.fromkeys(MERGING, patches_of_frames),
    gemma4: colours_last,
}


# PaliGemma's processor makes an array in a way that numpy announces the end of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("make", CHANNELS)
def test_one_grid(make):
    for pairs in seen_in_a_batch(make, CHANNELS[make]):
        of_whole, of_tiles = patches_of(pairs)
        assert len(of_whole) == len(pairs) and not of_tiles
        check_grid(of_whole)
