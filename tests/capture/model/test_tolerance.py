"""How far vectors lie apart, against numpy."""

import math

import numpy as np
import pytest
import torch

from capture.model.tolerance import relative_errors, root_mean_square, tolerance


def test_each_vector_by_its_own_norm():
    """A vector of a thousandth of its neighbour's norm is not hidden by it."""
    generator = np.random.default_rng(0)
    expected = generator.normal(size=(4, 16)) * np.array([[1000.0], [1.0], [1.0], [0.0]])
    found = expected.copy()
    found[1] *= 1.25
    errors = relative_errors(torch.from_numpy(found), torch.from_numpy(expected))
    assert errors.tolist() == pytest.approx([0, 0.25, 0, 0])
    assert root_mean_square(errors) == pytest.approx(0.125)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_infinitely_far(value, side):
    pair = [torch.ones(3, 5), torch.ones(3, 5)]
    pair[side][1, 2] = value
    errors = relative_errors(*pair)
    assert errors.tolist() == [0, math.inf, 0]
    assert root_mean_square(errors) == math.inf


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_within_the_tolerance_and_a_tenth_is_not(dtype):
    """Values rounded once are near; vectors that are off by a tenth of themselves are not."""
    exact = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    allowed = tolerance(dtype)
    rounded = relative_errors(exact.to(getattr(torch, dtype)), exact)
    assert root_mean_square(rounded) < allowed.rms and rounded.max() < allowed.worst
    assert root_mean_square(relative_errors(exact * 1.1, exact)) > allowed.rms
