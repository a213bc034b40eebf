"""The builder class: the default config's own Parquet, and every other window over all_layers."""

import pyarrow.parquet as pq
import pytest

from llava_amber_activations import LlavaAmberActivations


def builder_over(folder, cache, **options):
    return LlavaAmberActivations(
        dataset_name="amber",
        data_files=str(folder / "all_layers" / "*.parquet"),
        cache_dir=str(cache),
        **options,
    )


def own_parquet(folder, layer):
    """A layer's split as pyarrow alone reads it, without metadata and nullability."""
    files = sorted((folder / "data").glob(f"L{layer}-*.parquet"))
    return pq.ParquetDataset(files).read()


def test_every_layer_equals_its_parquet(all_dataset, tmp_path):
    """Prepared: the tables of L0 … L30 are those of the default config's files."""
    builder = builder_over(all_dataset, tmp_path)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert list(splits) == [f"L{layer}" for layer in range(31)]
    for layer in range(31):
        found = splits[f"L{layer}"].with_format("arrow")[:]
        expected = own_parquet(all_dataset, layer)
        assert found.num_rows == expected.num_rows > 64
        assert found.equals(expected.cast(found.schema)), layer


def test_streamed_layers_equal_their_parquet(all_dataset, tmp_path):
    builder = builder_over(all_dataset, tmp_path)
    for layer in (0, 16, 30):
        rows = list(builder.as_streaming_dataset(split=f"L{layer}"))
        assert rows == own_parquet(all_dataset, layer).to_pylist()


def test_other_windows(all_dataset, tmp_path):
    """Fewer targets, chosen layers, targets from the layer itself: against all_layers' columns."""
    builder = builder_over(all_dataset, tmp_path, n_targets=2, layers=[5, 31], first_target=0)
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert list(splits) == ["L5", "L31"]
    columns = pq.ParquetDataset(sorted((all_dataset / "all_layers").iterdir())).read()
    for layer, targets in ((5, (5, 6)), (31, (31,))):
        rows = splits[f"L{layer}"]
        assert rows["x"][:] == columns[f"x_{layer:02d}"].to_pylist()
        for k, target in enumerate(targets):
            expected = columns[f"mlp_out_{target:02d}"].to_pylist()
            assert [row[k] for row in rows["targets"][:]] == expected
        assert {len(row) for row in rows["targets"][:]} == {len(targets)}


def test_a_stream_can_be_cut_into_row_groups(all_dataset, tmp_path):
    """reshard gives every row group a shard of its own, and loses no row."""
    stream = builder_over(all_dataset, tmp_path).as_streaming_dataset(split="L3")
    files = sorted((all_dataset / "all_layers").iterdir())
    groups = sum(pq.ParquetFile(path).num_row_groups for path in files)
    cut = stream.reshard()
    assert (stream.num_shards, cut.num_shards) == (len(files), groups)
    assert list(cut) == list(stream)


@pytest.mark.parametrize("options", [{"n_targets": 1}, {"n_targets": 3}, {"first_target": 0}])
def test_windows_do_not_share_a_cache(last_dataset, tmp_path, options):
    """Another window over the same files is prepared anew."""
    counts = []
    for chosen in ({}, options):
        builder = builder_over(last_dataset, tmp_path, layers=[20], **chosen)
        builder.download_and_prepare()
        counts.append(len(builder.as_dataset(split="L20")[0]["targets"]))
    expected = {"first_target": 12}.get(next(iter(options)), options.get("n_targets"))
    assert counts == [11, expected]
