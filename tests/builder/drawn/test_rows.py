"""Rows drawn from a dataset: whole samples, the store's own values, and no more than a budget."""

import numpy as np
import pytest
import torch
from random_store import read_vectors

from builder.build import build
from builder.drawn.choosing import FEW_SAMPLES, Block, choose_layers
from builder.drawn.rows import draw_rows
from builder.export import export
from builder.import_pt import import_pt
from llava_amber_activations.sources.source import open_source

# Of a row of the planted dataset: 4 layers, x and mlp_out, 16 wide, float32.
ROW_BYTES = 4 * 2 * 16 * 4


@pytest.fixture(scope="module")
def stored(planted_store):
    return read_vectors(planted_store)


def check_values(rows, stored, names):
    """Check that rows are the store's, by sample and position."""
    at = np.flatnonzero(np.isin(stored["sample"], [each.sample for each in rows.samples]))
    for name in ("sample", "position", "token_id", "kind", "patch_row", "patch_col"):
        assert np.array_equal(getattr(rows, name), stored[name][at]), name
    assert set(rows.vectors) == set(names)
    for name in names:
        assert np.array_equal(rows.vectors[name], stored[name][at]), name


def test_all_rows_where_they_fit(planted, stored):
    rows = draw_rows(open_source(planted))
    assert rows.are_all and len(rows) == 480 and rows.n_bytes == 480 * ROW_BYTES
    check_values(rows, stored, [f"{kind}_{n:02d}" for kind in ("x", "mlp_out") for n in range(4)])
    assert [each.sample for each in rows.samples] == list(range(12))
    assert rows.samples[3].rows == range(120, 160)
    third = rows.samples[3]
    assert (third.id, third.image, third.query) == (4, "AMBER_4.jpg", "Describe picture 3.")
    assert rows.tokens[120:124] == ("<s>", "USER:", "<image>", "<image>")
    assert rows.token_text(159) == " word39"


def test_a_budget_draws_whole_samples_and_a_seed_says_which(planted, stored):
    source = open_source(planted)
    drawn = [draw_rows(source, max_bytes=9 * 40 * ROW_BYTES, seed=seed) for seed in (0, 0, 1)]
    names = [f"{kind}_{n:02d}" for kind in ("x", "mlp_out") for n in range(4)]
    for rows in drawn:
        assert len(rows.samples) == 9 and len(rows) == 360
        check_values(rows, stored, names)
    assert drawn[0].samples == drawn[1].samples != drawn[2].samples


def test_asked_layers_alone_are_read(planted, stored):
    source = open_source(planted)
    rows = draw_rows(source, layers=[1, 3, 9], mlp_out=False)
    assert rows.layers == (1, 3)
    check_values(rows, stored, ["x_01", "x_03"])
    rows = draw_rows(source, max_bytes=40 * ROW_BYTES, layers=[0], always=[2], mlp_out=False)
    assert rows.layers == (0, 2) and len(rows.samples) == 4
    check_values(rows, stored, ["x_00", "x_02"])


def test_a_dataset_without_all_layers(planted_store, stored, tmp_path):
    """`x` is in each layer's split, the MLP outputs among the targets; what no split has is not."""
    build(planted_store, tmp_path / "dataset", configs=("default",), max_shard_size="30kB")
    rows = draw_rows(open_source(tmp_path / "dataset"), max_bytes=5 * 40 * ROW_BYTES)
    assert len(rows.samples) in (5, 6)
    check_values(rows, stored, ["x_00", "x_01", "x_02", "mlp_out_01", "mlp_out_02", "mlp_out_03"])


def test_an_import_that_lacks_layers(planted_store, stored, tmp_path):
    build(planted_store, tmp_path / "dataset")
    export(tmp_path / "dataset", tmp_path / "pt", layout="layers", layers="0,2", n_targets=1)
    import_pt(tmp_path / "pt", tmp_path / "imported")
    rows = draw_rows(open_source(tmp_path / "imported"))
    assert rows.layers == (0, 1, 2, 3)
    for name in ("x_00", "x_02", "mlp_out_01", "mlp_out_03"):
        assert np.array_equal(rows.vectors[name], stored[name]), name
    assert set(rows.vectors) == {"x_00", "x_02", "mlp_out_01", "mlp_out_03"}
    assert rows.token_text(0) is None and set(rows.kind.tolist()) == {-1}


def test_samples_that_share_row_groups_stay_together(small_dataset):
    """Nine rows of four samples in one row group: all of it, whatever the budget."""
    rows = draw_rows(open_source(small_dataset), max_bytes=1)
    assert [(each.sample, len(each.rows)) for each in rows.samples] == [
        (0, 3),
        (1, 1),
        (3, 3),
        (4, 2),
    ]
    assert rows.n_samples == 5


def test_layers_are_left_out_before_samples_are():
    """Of 32 layers as many, evenly apart, as leave room for few samples; five at least."""
    blocks = [Block(range(n * 600, (n + 1) * 600), 1) for n in range(1000)]
    layer_bytes = 2 * 8192
    few = FEW_SAMPLES * 600 * layer_bytes
    assert choose_layers(range(32), blocks, layer_bytes, 32 * few) == list(range(32))
    assert choose_layers(range(32), blocks, layer_bytes, 8 * few) == [0, 4, 9, 13, 18, 22, 27, 31]
    assert choose_layers(range(32), blocks, layer_bytes, 1) == [0, 8, 16, 23, 31]
    assert choose_layers([3, 7], blocks, layer_bytes, 1) == [3, 7]


def test_features_alone_have_no_rows(tmp_path):
    """An import of sample files holds no vectors of layers."""
    (tmp_path / "pt").mkdir()
    for sample in range(2):
        sample_file = tmp_path / "pt" / f"sample_{sample:04d}.pt"
        torch.save({"activations": {0: torch.ones(3), 1: torch.ones(3)}}, sample_file)
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert draw_rows(open_source(tmp_path / "dataset")) is None
