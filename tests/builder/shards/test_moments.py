"""Moments against numpy in float64, however the rows are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.shards.vector_moments import merge_all, vector_moments


def moments_of(rows):
    return vector_moments(rows, np.zeros(len(rows), dtype=np.int64))


def merged(parts):
    return merge_all({"x_00": moments_of(part)} for part in parts)["x_00"]


def check(found, exact):
    assert found.n == len(exact)
    assert np.allclose(found.mean, exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    assert np.allclose(found.std, exact.std(axis=0), rtol=1e-9, atol=1e-9)
    assert np.allclose(found.mean_square, (exact**2).mean(axis=0), rtol=1e-12)
    norms = np.linalg.norm(exact, axis=1)
    assert found.norm_sum == pytest.approx(norms.sum(), rel=1e-12)
    assert found.kind_norm_sums.sum() == pytest.approx(norms.sum(), rel=1e-12)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_merged_moments_are_those_of_all_rows(cuts, offset):
    """Also where the mean is large beside the deviation, which a sum of squares would lose."""
    generator = np.random.default_rng(sum(cuts))
    rows = (generator.standard_normal((sum(cuts), 5)) + offset).astype(np.float32)
    check(merged(np.split(rows, np.cumsum(cuts)[:-1])).whole, rows.astype(np.float64))


@settings(max_examples=30)
@given(
    st.lists(st.integers(5, 40), min_size=1, max_size=6),
    st.sampled_from([100.0, 1e6, 1e12, 1e30]),
)
def test_outliers_of_any_size_take_no_digits_from_the_others(cuts, size):
    """One in the first part and one in the last, up to what would swallow all others in a sum."""
    generator = np.random.default_rng(sum(cuts))
    rows = generator.standard_normal((sum(cuts), 64)).astype(np.float32)
    rows[[0, -1]] *= np.float32(size)
    found = merged(np.split(rows, np.cumsum(cuts)[:-1]))
    assert found.are_outliers_apart
    check(found.robust, rows[1:-1].astype(np.float64))


def test_a_large_row_before_its_median_is_known():
    """It is not told apart then, and that is known at the end; told what to set apart, it is."""
    rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    rows[:8] *= 1000
    parts = [rows[:8], rows[8:]]
    found = merged(parts)
    assert not found.are_outliers_apart
    kinds = np.zeros(64, dtype=np.int64)
    again = merge_all(
        {"x_00": vector_moments(part, kinds[: len(part)], outliers_from=found.outliers_from)}
        for part in parts
    )["x_00"]
    assert again.are_outliers_apart
    check(again.robust, rows[8:].astype(np.float64))
    assert again.whole.squares.tolist() == found.whole.squares.tolist()


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
