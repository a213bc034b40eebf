"""Captured values against an independent pass: one sample at a time, no padding, plain hooks."""

import pytest
import torch
from datasets import disable_progress_bars, load_dataset
from safetensors.torch import load_file

from builder.build import build

disable_progress_bars()

# The queries of conftest.query_file, in its order.
N_SAMPLES = 8


@pytest.fixture(scope="module")
def passes(reference, image_dir, query_file):
    """The independent pass of every sample."""
    import json

    entries = json.loads(query_file.read_text())
    return [reference.run(image_dir / entry["image"], entry["query"]) for entry in entries]


def wanted_positions(single_pass, mode):
    """Which positions of a sample a mode keeps, written down without the code under test."""
    ids = single_pass.input_ids.tolist()
    image_token = 4
    return {
        "last": [len(ids) - 1],
        "all": list(range(len(ids))),
        "image": [n for n, token in enumerate(ids) if token == image_token],
        "text": [n for n, token in enumerate(ids) if token != image_token],
    }[mode]


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("mode", ["last", "all"])
def test_every_split_equals_the_independent_pass(request, passes, mode):
    """x and every target of L0 … L30, with sample, id, image, position and token_id."""
    dataset = load_dataset(str(request.getfixturevalue(f"{mode}_dataset")))
    assert list(dataset) == [f"L{layer}" for layer in range(31)]
    rows = [
        (sample, position)
        for sample, single in enumerate(passes)
        for position in wanted_positions(single, mode)
    ]
    lengths = {len(single.input_ids) for single in passes}
    assert len(lengths) > 3, "the prompts must differ in length, or padding is not tested"
    for layer in range(31):
        split = dataset[f"L{layer}"].with_format("numpy")[:]
        assert list(zip(split["sample"].tolist(), split["position"].tolist(), strict=True)) == rows
        assert split["id"].tolist() == [101 + sample for sample, _ in rows]
        assert list(split["image"]) == [f"AMBER_{sample + 1}.jpg" for sample, _ in rows]
        assert split["token_id"].tolist() == [int(passes[s].input_ids[p]) for s, p in rows]
        n_targets = {16: 15, 30: 1}.get(layer, min(16, 31 - layer))
        x = torch.tensor(split["x"])
        targets = torch.tensor(split["targets"])
        assert targets.shape == (len(rows), n_targets, 64)
        expected_x = torch.stack([passes[s].resid_mid[layer][p] for s, p in rows])
        assert relative_error(x, expected_x) < 1e-4
        for k in range(n_targets):
            expected = torch.stack([passes[s].mlp_out[layer + 1 + k][p] for s, p in rows])
            assert relative_error(targets[:, k], expected) < 1e-4


def test_the_passes_tell_samples_layers_and_positions_apart(passes):
    """The comparison above could not fail if these were alike to one part in ten thousand."""
    first, second = passes[0], passes[4]  # the same query, other pictures
    assert relative_error(second.mlp_out[20][-1], first.mlp_out[20][-1]) > 1e-2
    assert relative_error(first.mlp_out[21][-1], first.mlp_out[20][-1]) > 1e-2
    assert relative_error(first.resid_mid[20][-2], first.resid_mid[20][-1]) > 1e-2


@pytest.mark.parametrize("site", ["resid_mid", "resid_pre", "mlp_in"])
@pytest.mark.parametrize("mode", ["last", "image", "text"])
def test_each_site_and_mode(make_store, passes, tmp_path, site, mode):
    """Every layer's x and mlp_out in the store, for each site and position mode."""
    store = make_store(tmp_path / "store", positions=mode, x_site=site, chunk_samples=N_SAMPLES)
    chunk = load_file(store / "chunks" / "chunk-00000.safetensors")
    rows = [
        (sample, position)
        for sample, single in enumerate(passes)
        for position in wanted_positions(single, mode)
    ]
    assert list(zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True)) == rows
    for layer in range(32):
        for name, by_layer in ((f"x_{layer:02d}", site), (f"mlp_out_{layer:02d}", "mlp_out")):
            expected = torch.stack([getattr(passes[s], by_layer)[layer][p] for s, p in rows])
            assert relative_error(chunk[name], expected) < 1e-4


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_batch_size_changes_nothing(make_store, passes, tmp_path, batch_size):
    """Whatever shares a batch with a sample, its values are those it has alone."""
    store = make_store(tmp_path / "store", batch_size=batch_size, chunk_samples=N_SAMPLES)
    chunk = load_file(store / "chunks" / "chunk-00000.safetensors")
    for layer in range(32):
        expected = torch.stack([single.mlp_out[layer][-1] for single in passes])
        assert relative_error(chunk[f"mlp_out_{layer:02d}"], expected) < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_store_dtype_rounds_once(make_store, last_store, tmp_path, dtype):
    """A float32 run kept in 16 bits is the float32 store rounded to nearest, nothing else."""
    store = make_store(tmp_path / "store", store_dtype=dtype)
    for path in sorted((last_store / "chunks").iterdir()):
        full, half = load_file(path), load_file(store / "chunks" / path.name)
        for name in full:
            if name.startswith(("x_", "mlp_out_")):
                assert half[name].dtype == getattr(torch, dtype)
                assert torch.equal(half[name], full[name].to(getattr(torch, dtype)))


def test_samples_of_zero_rows_are_left_out(make_store, image_dir, tmp_path):
    """A skipped sample has a record with its reason, no rows, and shifts no other sample."""
    import json
    import shutil

    images = tmp_path / "images"
    shutil.copytree(image_dir, images)
    (images / "AMBER_3.jpg").write_bytes(b"not a picture")
    store = make_store(tmp_path / "store", image_dir=images, on_error="skip")
    lines = [json.loads(line) for line in (store / "samples.jsonl").read_text().splitlines()]
    assert [line["n_rows"] for line in lines] == [1, 1, 0, 1, 1, 1, 1, 1]
    assert "cannot be read" in lines[2]["error"]
    build(store, tmp_path / "dataset")
    split = load_dataset(str(tmp_path / "dataset"), "L0", split="L0")
    assert split["sample"][:] == [0, 1, 3, 4, 5, 6, 7]
    assert split["id"][:] == [101, 102, 104, 105, 106, 107, 108]
