"""Moments against numpy in float64, however the rows are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.shards.moments import merge_all, moments_of


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_merged_moments_are_those_of_all_rows(cuts, offset):
    """Also where the mean is large beside the deviation, which a sum of squares would lose."""
    generator = np.random.default_rng(sum(cuts))
    rows = (generator.standard_normal((sum(cuts), 5)) + offset).astype(np.float32)
    parts = np.split(rows, np.cumsum(cuts)[:-1])
    found = merge_all({"x_00": moments_of(part)} for part in parts)["x_00"]
    exact = rows.astype(np.float64)
    assert found.n == len(rows)
    assert np.allclose(found.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    assert np.allclose(found.std, exact.std(axis=0), rtol=1e-9, atol=1e-9)
    assert np.allclose(found.mean_square, (exact**2).mean(axis=0), rtol=1e-12)
    norms = np.linalg.norm(exact, axis=1)
    assert found.norm_sum == pytest.approx(norms.sum(), rel=1e-12)


def test_quantiles_are_within_a_bin():
    """5 %, 50 % and 95 % of the rows' RMS, to 1.1 %: one bin."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((4000, 8)) * generator.lognormal(0, 2, (4000, 1))
    found = moments_of(rows).rms_quantiles((0.05, 0.5, 0.95))
    rms = np.sqrt((rows**2).mean(axis=1))
    assert found == pytest.approx(np.quantile(rms, (0.05, 0.5, 0.95)).tolist(), rel=0.02)


def test_zeros_and_large_values_have_a_bin():
    moments = moments_of(np.array([[0.0, 0.0], [3e38, 3e38]], dtype=np.float32))
    assert moments.rms_counts.sum() == 2
