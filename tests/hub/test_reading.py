"""Opening a pushed repo as a stranger, and the bytes that each way of reading it fetches."""

import json
import shutil
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import List, Value, load_dataset
from huggingface_hub import HfApi
from loopback_hub import DEFAULT_TOKEN
from random_store import make_random_store

from builder.build import build
from builder.drawn.rows import draw_rows
from builder.info import info
from builder.push import push
from llava_amber_activations import (
    Activations,
    ActivationsError,
    activation_batches,
    load_activations,
    load_statistics,
)
from llava_amber_activations.reading import read_ahead
from llava_amber_activations.sources.fetched import fetched_bytes
from llava_amber_activations.sources.source import open_source


def column_bytes(folder, names):
    """Bytes of some columns' chunks in every all_layers shard, by pyarrow's reading of footers."""
    total = 0
    for path in (folder / "all_layers").iterdir():
        footer = pq.ParquetFile(path).metadata
        for group in range(footer.num_row_groups):
            for column in range(footer.num_columns):
                chunk = footer.row_group(group).column(column)
                if chunk.path_in_schema.partition(".")[0] in names:
                    total += chunk.total_compressed_size
    return total


def test_datasets_alone_opens_it(hub, pushed, narrow_vectors):
    """31 splits, features as designed, values equal to the store's, bit for bit."""
    splits = load_dataset(pushed)
    assert list(splits) == [f"L{layer}" for layer in range(31)]
    assert dict(splits["L5"].features) == {
        "sample": Value("int32"),
        "id": Value("int32"),
        "image": Value("string"),
        "position": Value("int32"),
        "token_id": Value("int32"),
        "kind": Value("string"),
        "patch_row": Value("int32"),
        "patch_col": Value("int32"),
        "x": List(Value("float16"), length=64),
        "targets": List(List(Value("float16"), length=64)),
    }
    for layer in (0, 5, 16, 30):
        split = splits[f"L{layer}"].with_format("arrow")[:]
        x = split["x"].combine_chunks().flatten().to_numpy().reshape(200, 64)
        assert np.array_equal(x, narrow_vectors[f"x_{layer:02d}"])
        n_targets = min(16, 31 - layer)
        flat = split["targets"].combine_chunks().flatten().flatten().to_numpy()
        expected = [narrow_vectors[f"mlp_out_{layer + 1 + k:02d}"] for k in range(n_targets)]
        assert np.array_equal(flat.reshape(200, n_targets, 64), np.stack(expected, axis=1))


def test_one_config_fetches_one_layer(hub, pushed_wide, wide_dataset):
    """`load_dataset(R, "L7")` sends at most 1.02 of that layer's files, the card included."""
    hub.reset_counts()
    layer = load_dataset(pushed_wide, "L7", split="L7")
    assert layer.num_rows == 256
    size = sum(path.stat().st_size for path in (wide_dataset / "data").glob("L7-*"))
    assert size <= hub.bytes_sent() <= 1.02 * size


def test_streamed_config(hub, pushed, narrow_vectors):
    rows = list(load_dataset(pushed, "L30", split="L30", streaming=True))
    found = np.array([row["targets"] for row in rows], dtype=np.float16)
    assert np.array_equal(found[:, 0], narrow_vectors["mlp_out_31"])


def test_stream_fetches_its_columns(hub, pushed_wide, wide_dataset, wide_store):
    """x_05, mlp_out_06 and mlp_out_07, read to the end: at most 1.05 of their chunks' bytes."""
    needed = column_bytes(wide_dataset, {"x_05", "mlp_out_06", "mlp_out_07"})
    hub.reset_counts()
    stream = load_activations(pushed_wide, layer=5, n_targets=2, streaming=True)
    rows = [len(batch["x"]) for batch in activation_batches(stream, batch_size=64)]
    assert sum(rows) == 256
    assert needed <= hub.bytes_sent() <= 1.05 * needed


def test_first_batch_waits_for_two_row_groups(hub, pushed_wide, wide_dataset):
    """When the first batch is there, no more than two row groups' columns have been sent."""
    columns = {"sample", "id", "image", "position", "token_id", "x_09", "mlp_out_10"}
    shards = [pq.ParquetFile(path) for path in (wide_dataset / "all_layers").iterdir()]
    assert sum(shard.num_row_groups for shard in shards) == 4
    two_of_four = column_bytes(wide_dataset, columns) / 2
    stream = load_activations(pushed_wide, layer=9, n_targets=1, streaming=True)
    hub.reset_counts()
    batches = iter(activation_batches(stream, batch_size=64))
    assert len(next(batches)["x"]) == 64
    footer = 65536  # pyarrow reads so much of the end of a file at once
    assert hub.bytes_sent("all_layers/") <= two_of_four + footer
    for _ in batches:
        pass


@pytest.fixture(scope="module")
def of_many_shards(tmp_path_factory):
    """Function that pushes a dataset of so many shards, a row group of 8 rows each."""

    @cache
    def make(n_shards):
        folder = tmp_path_factory.mktemp("many") / "dataset"
        store = make_random_store(folder.parent / "store", 8 * n_shards, 8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builder.shards.plan._USUAL_GROUP_ROWS", 8)
            manifest = build(store, folder, configs=["all_layers"], max_shard_size="1kB")
        assert len(manifest.shards("all_layers", "train")) == n_shards
        push(folder, f"lab/of-{n_shards}", token=DEFAULT_TOKEN)
        return f"lab/of-{n_shards}"

    return make


@pytest.mark.parametrize("rows_done", [0, 40])
def test_a_shuffled_stream_begins_without_reading_every_footer(
    hub, of_many_shards, monkeypatch, rows_done
):
    """The first window's row groups, and two that are on their way: of 10 shards as of 40.

    A footer of each of the 40 alone would be 40 requests.
    """
    monkeypatch.setattr("llava_amber_activations.streams.shard_stream._FIRST_WINDOW_ROWS", 8)
    monkeypatch.setattr("llava_amber_activations.streams.shard_stream._WINDOW_ROWS", 8)
    for n_shards in (10, 40):
        repo_id = of_many_shards(n_shards)
        read_ahead._packed_footer_on_hub.cache_clear()
        hub.reset_counts()
        batches = Activations(repo_id).batches(layer=30, batch_size=8, shuffle=True, seed=1)
        batches.load_state_dict({**batches.state_dict(), "rows_done": rows_done})
        rest = iter(batches)
        next(rest)
        assert len(hub.requests()) < 25
        assert len(hub.file_counts("all_layers/")) <= 4
        assert sum(1 for _ in rest) == n_shards - 1 - rows_done // 8


def test_prepared_from_the_hub_fetches_its_columns(hub, pushed_wide, wide_dataset, tmp_path):
    """Preparing one layer in the cache does not download the other layers either."""
    needed = column_bytes(wide_dataset, {"x_05", "mlp_out_06", "mlp_out_07"})
    hub.reset_counts()
    layer = load_activations(pushed_wide, layer=5, n_targets=2, cache_dir=tmp_path)
    assert layer.num_rows == 256
    assert hub.bytes_sent() <= 1.05 * needed


@pytest.mark.parametrize("first_target", [0, 1])
def test_streamed_values(hub, pushed, narrow_vectors, first_target):
    """x and targets of both conventions are the store's, in its order."""
    stream = load_activations(pushed, 5, n_targets=4, first_target=first_target, streaming=True)
    batches = list(activation_batches(stream, batch_size=48))
    x = torch.cat([batch["x"] for batch in batches]).numpy()
    targets = torch.cat([batch["targets"] for batch in batches]).numpy()
    assert x.dtype == np.float16 and np.array_equal(x, narrow_vectors["x_05"])
    for k in range(4):
        name = f"mlp_out_{5 + first_target + k:02d}"
        assert np.array_equal(targets[:, k], narrow_vectors[name])


def test_export_from_a_stream(hub, cli, pushed, narrow_vectors, tmp_path):
    """The .pt files of one layer, without a copy of the Parquet on this machine."""
    hub.reset_counts()
    result = cli(
        *("export", pushed, tmp_path / "pt", "--format", "layers"),
        *("--layers", "5", "--n-targets", "4", "--batch-size", "200"),
    )
    assert result.returncode == 0, result.stderr
    x = torch.load(tmp_path / "pt" / "L5" / "batch_0_x.pt", weights_only=True)["x"]
    y = torch.load(tmp_path / "pt" / "L5" / "batch_0_y.pt", weights_only=True)
    assert np.array_equal(x[:, 0].numpy(), narrow_vectors["x_05"])
    for k, target in enumerate(y["targets"]):
        assert np.array_equal(target[:, 0].numpy(), narrow_vectors[f"mlp_out_{6 + k:02d}"])
    assert not list(tmp_path.rglob("*.parquet"))
    assert not hub.bytes_sent("data/")


def test_export_of_samples_from_a_stream(hub, cli, pushed, narrow_vectors, tmp_path):
    result = cli("export", pushed, tmp_path / "pt", "--format", "samples", "--layers", "0,31")
    assert result.returncode == 1 and "layers [31] are not in this data" in result.stderr
    result = cli("export", pushed, tmp_path / "pt", "--format", "samples", "--layers", "0,30")
    assert result.returncode == 0, result.stderr
    value = torch.load(tmp_path / "pt" / "sample_0199.pt", weights_only=True)
    assert list(value["activations"]) == [0, 30]
    assert np.array_equal(value["activations"][30].numpy(), narrow_vectors["x_30"][199])


def test_info_fetches_only_the_manifest(hub, pushed):
    hub.reset_counts()
    lines = dict(info(pushed))
    assert lines["rows"] == "200" and lines["dtype"] == "float16"
    assert set(hub.file_counts()) == {"manifest.json"}


def test_statistics(hub, pushed, narrow_vectors):
    """Mean, standard deviation and mean norm, against numpy in float64 over the store."""
    statistics = load_statistics(pushed)
    for layer in (0, 13, 31):
        for kind in ("x", "mlp_out"):
            rows = narrow_vectors[f"{kind}_{layer:02d}"].astype(np.float64)
            mean = getattr(statistics, f"{kind}_mean")[layer].numpy()
            std = getattr(statistics, f"{kind}_std")[layer].numpy()
            norm = getattr(statistics, f"{kind}_mean_norm")[layer].item()
            assert np.allclose(mean, rows.mean(axis=0), rtol=1e-6, atol=1e-7)
            assert np.allclose(std, rows.std(axis=0), rtol=1e-6)
            assert norm == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-6)


def test_revisions(hub, narrow_dataset, pushed, tmp_path):
    """A tag, a commit and a branch can be named; one that is not there is said."""
    commit = HfApi().dataset_info(pushed).sha
    for revision in ("v1.1", commit, "main"):
        stream = load_activations(pushed, layer=0, streaming=True, revision=revision)
        assert next(iter(stream))["image"] == "AMBER_1.jpg"
    with pytest.raises(ActivationsError, match="no such revision"):
        load_activations(pushed, layer=0, revision="v9.9")
    with pytest.raises(ActivationsError, match="no such revision"):
        info(pushed, revision="v9.9")


def test_newer_format_is_refused(hub, narrow_dataset, tmp_path):
    """A dataset of format 2.0 on the Hub names the release that reads it."""
    folder = tmp_path / "newer"
    shutil.copytree(narrow_dataset, folder)
    push(folder, "lab/newer", token=DEFAULT_TOKEN)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format_version"] = "2.0"
    HfApi(token=DEFAULT_TOKEN).upload_file(
        path_or_fileobj=json.dumps(manifest).encode(),
        path_in_repo="manifest.json",
        repo_id="lab/newer",
        repo_type="dataset",
    )
    with pytest.raises(ActivationsError, match=r"format 2\.0.*install .* 2\.0"):
        load_activations("lab/newer", layer=0, streaming=True)


def test_missing_and_private_repos(hub, cli, narrow_dataset):
    """404 and 401: one line that says what to do."""
    push(narrow_dataset, "lab/private", private=True, token=DEFAULT_TOKEN)
    for repo_id, token in (("lab/absent", DEFAULT_TOKEN), ("lab/private", "")):
        result = cli("info", repo_id, HF_TOKEN=token)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: cannot read {repo_id} on the Hub")
        assert "hf auth login" in result.stderr and len(result.stderr.splitlines()) == 1
    result = cli("info", "lab/private", HF_TOKEN=DEFAULT_TOKEN)
    assert result.returncode == 0, result.stderr


def test_drawn_rows_fetch_their_own_bytes_alone_and_count_them(hub, pushed_wide, wide_dataset):
    """Two layers' x of two of four row groups; what is counted is what was sent."""
    Activations(pushed_wide)
    hub.reset_counts()
    before = fetched_bytes()
    source = open_source(pushed_wide)
    rows = draw_rows(source, layers=[5, 9], mlp_out=False, max_bytes=2 * 64 * 2 * 8192)
    sent = hub.bytes_sent()
    assert len(rows) == 128 and set(rows.vectors) == {"x_05", "x_09"}
    here = draw_rows(open_source(wide_dataset), layers=[5, 9], mlp_out=False, max_bytes=2**21)
    assert here.samples == rows.samples
    assert np.array_equal(here.vectors["x_09"], rows.vectors["x_09"])
    needed = column_bytes(wide_dataset, {"x_05", "x_09"}) / 2
    assert needed < sent < 1.1 * needed
    assert fetched_bytes() - before == sent
