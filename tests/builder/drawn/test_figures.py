"""Figures of planted rows, against values that are computed otherwise."""

import numpy as np
import pytest

from builder.drawn.by_layer import layer_figures
from builder.drawn.patches import patch_maps
from builder.drawn.ridge import ridge_fit
from builder.drawn.rows import draw_rows
from builder.drawn.sinks import layer_sinks, shares_by_layer
from llava_amber_activations.sources.source import open_source


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_a_planted_sink_is_named(planted):
    """Dimension 5 at position 0 of layer 2: 3000² of nearly all energy, once in 40 rows."""
    rows = draw_rows(open_source(planted))
    found = layer_sinks(rows, 2)
    x = rows.x(2).astype(np.float64)
    total = (x**2).sum()
    largest = found.dimensions[0]
    assert largest.dimension == 5
    assert largest.share == pytest.approx((x[:, 5] ** 2).sum() / total) and largest.share > 0.999
    at = rows.position == 0
    assert largest.positions[0][0] == 0
    assert largest.positions[0][1] == pytest.approx((x[at, 5] ** 2).sum() / (x[:, 5] ** 2).sum())
    position = found.positions[0]
    assert (position.position, position.kind, position.token) == (0, "text", "<s>")
    assert position.n_rows == 12
    assert position.share == pytest.approx((x[at] ** 2).sum() / total)
    assert position.mean_norm == pytest.approx(np.linalg.norm(x[at], axis=1).mean())
    assert found.tokens[0].token == "<s>" and found.tokens[0].n_rows == 12
    assert found.n_outliers == 12 and found.outlier_share == pytest.approx(position.share)
    assert found.median_norm == pytest.approx(np.median(np.linalg.norm(x, axis=1)))
    assert sum(found.dimension_shares) == pytest.approx(1)
    assert sum(share for _, share in found.position_shares) == pytest.approx(1)
    shares = np.sort(found.dimension_shares)[::-1]
    assert found.top_shares == pytest.approx([shares[:n].sum() for n in (1, 4, 16)])
    # Beside layer 0, where nothing is large.
    named = shares_by_layer([layer_sinks(rows, 0), found], "position", 1)
    assert list(named) == [0] and named[0][0] < 0.1 and named[0][1] > 0.999


def test_norms_by_kind(planted):
    """All rows first, then each kind that there is."""
    rows = draw_rows(open_source(planted))
    for figures in layer_figures(rows, with_ridge=False):
        for name, by_kind in (("x", figures.x), ("mlp_out", figures.mlp_out)):
            vectors = rows.vectors[f"{name}_{figures.layer:02d}"].astype(np.float64)
            norms = np.linalg.norm(vectors, axis=1)
            assert [each.kind for each in by_kind] == ["all", "text", "image", "generated"]
            assert [each.n_rows for each in by_kind] == [480, 240, 192, 48]
            for each, chosen in zip(by_kind[1:], (0, 1, 2), strict=True):
                assert each.mean == pytest.approx(norms[rows.kind == chosen].mean())
            spread = by_kind[0].spread
            assert [spread.low, spread.median, spread.high] == pytest.approx(
                np.percentile(norms, (5, 50, 95)).tolist()
            )
        assert figures.ridge is None


def test_rows_of_unknown_kinds(made_rows, random):
    rows = made_rows({"x_00": random.standard_normal((6, 4)).astype(np.float32)}, 2)
    (figures,) = layer_figures(rows)
    assert [(each.kind, each.n_rows) for each in figures.x] == [("all", 6), ("unknown", 6)]
    assert figures.mlp_out == () and figures.ridge is None and figures.next_layer is None
    assert figures.sinks.positions[0].token is None and figures.sinks.tokens == ()
    assert patch_maps(rows) == ()


def test_cosines_of_neighbours(made_rows):
    """Of the next layer that there is: 1 where a vector is kept, 0 where it is turned."""
    x = np.tile(np.eye(2, 4, dtype=np.float32), (4, 1))
    turned = np.roll(x, 2, axis=1)
    vectors = {"x_01": x, "x_02": 3 * x, "mlp_out_03": x, "x_04": turned, "x_05": 0 * x}
    found = {each.layer: each for each in layer_figures(made_rows(vectors, 1))}
    assert [(n, each.next_layer) for n, each in found.items()] == [
        (1, 2),
        (2, 4),
        (3, None),
        (4, 5),
        (5, None),
    ]
    assert found[1].cosine_to_next.median == pytest.approx(1)
    assert found[2].cosine_to_next.high == pytest.approx(0)
    # Of a vector of zeros there is no angle, and nothing carries its energy.
    assert found[4].cosine_to_next.low == 0 and found[5].sinks is None
    assert found[3].cosine_to_next is None and found[3].x == ()


def test_a_linear_map_is_explained_and_noise_is_not(planted):
    rows = draw_rows(open_source(planted))
    figures = layer_figures(rows)
    linear, noise = figures[1].ridge, figures[3].ridge
    assert linear.explained > 0.9999 and linear.strength == 1e-4
    assert -0.1 < noise.explained < 0.05 and noise.strength > linear.strength
    assert (linear.n_train_samples, linear.n_held_out_samples) == (9, 3)
    assert (linear.n_train_rows, linear.n_held_out_rows) == (360, 120)
    # The sink of layer 2 is left out of its fit.
    assert figures[2].ridge.n_outliers == 12
    assert figures[2].ridge.n_train_rows + figures[2].ridge.n_held_out_rows == 480 - 12


@pytest.mark.parametrize("width", [10, 300])
def test_ridge_is_the_ridge(random, width):
    """By dimensions and by rows: least squares, with √λ times the identity below the rows."""
    sample = np.repeat(np.arange(16, dtype=np.int32), 10)
    x = random.standard_normal((160, width)).astype(np.float32) * 2 + 1
    y = (x @ random.standard_normal((width, 7)) / width**0.5).astype(np.float32)
    y += 0.5 * random.standard_normal(y.shape).astype(np.float32)
    found = ridge_fit(x, y, sample, seed=3)
    held_out = np.random.default_rng(3).permutation(16)[:4]
    test = np.isin(sample, held_out)
    mean, std = x[~test].mean(0, dtype=np.float64), x[~test].std(0, dtype=np.float64)
    inputs, tests = (x[~test] - mean) / std, (x[test] - mean) / std
    y_mean = y[~test].mean(0, dtype=np.float64)
    eigenvalues = np.linalg.svd(inputs, compute_uv=False) ** 2
    strength = found.strength * eigenvalues.sum() / min(inputs.shape)
    below = strength**0.5 * np.eye(width)
    weights, *_ = np.linalg.lstsq(
        np.vstack([inputs, below]), np.vstack([y[~test] - y_mean, np.zeros((width, 7))])
    )
    missed = y[test] - y_mean - tests @ weights
    expected = 1 - (missed**2).sum() / ((y[test] - y_mean) ** 2).sum()
    assert found.explained == pytest.approx(expected, rel=1e-6)
    assert (found.n_train_rows, found.n_held_out_rows) == (120, 40)


def test_few_samples_are_not_fitted(random):
    x = random.standard_normal((70, 4)).astype(np.float16)
    sample = np.repeat(np.arange(7, dtype=np.int32), 10)
    found = ridge_fit(x, x, sample)
    assert found.explained is None and found.n_train_rows == 0
    assert found.why_not.startswith("7 samples were drawn")


def test_what_does_not_vary_is_not_explained():
    sample = np.repeat(np.arange(8, dtype=np.int32), 2)
    ones = np.ones((16, 4), np.float32)
    found = ridge_fit(ones, ones, sample)
    assert found.explained is None and found.why_not.startswith("mlp_out is the same")


def test_a_fit_has_no_more_rows_than_its_work_allows(random):
    x = random.standard_normal((800, 4)).astype(np.float32)
    sample = np.repeat(np.arange(80, dtype=np.int32), 10)
    found = ridge_fit(x, x, sample, most_work=16 * 100)
    assert (found.n_train_rows, found.n_held_out_rows) == (100, 100)
    assert found.explained > 0.99


def test_patch_maps(planted):
    """The patch that was planted in layer 1 is the largest there; each is the mean of its rows."""
    rows = draw_rows(open_source(planted))
    maps = {each.layer: each for each in patch_maps(rows)}
    assert sorted(maps) == [0, 1, 2, 3]
    for layer, found in maps.items():
        grid = np.array(found.norms)
        assert grid.shape == (4, 4) and found.n_samples == 12
        norms = np.linalg.norm(rows.x(layer).astype(np.float64), axis=1)
        at = (rows.patch_row == 1) & (rows.patch_col == 2)
        assert grid[1, 2] == pytest.approx(norms[at].mean())
    assert np.argmax(maps[1].norms) == 6


def test_grids_of_several_sizes(made_rows):
    """A patch that few pictures have is the mean of those; one that none has is nothing."""
    x = np.arange(1, 7, dtype=np.float32)[:, None]
    rows = made_rows({"x_00": x}, 3, patch_row=[0, 0, -1, 0, 1, -1], patch_col=[0, 1, -1, 0, 2, -1])
    (found,) = patch_maps(rows)
    assert found.norms == ((2.5, 2.0, None), (None, None, 5.0)) and found.n_samples == 2
