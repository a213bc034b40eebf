"""Dataset folders: bits of the store, files' facts, refusals that leave nothing behind."""

import hashlib
import json
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folders import files_of
from format_1_0 import make_manifest_1_0, make_store_1_0
from manifests import seal
from safetensors.torch import load_file
from tensor_bytes import first_byte

from builder.build import build
from builder.verify import verify
from llava_amber_activations import ActivationsError


def store_tensors(store):
    """Every tensor of a store, its chunks joined, by safetensors alone."""
    chunks = [load_file(path) for path in sorted((store / "chunks").iterdir())]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def parquet_table(folder, pattern):
    return pq.ParquetDataset(sorted(folder.glob(pattern))).read()


def vectors(column, *shape):
    """The numbers of a column of lists, or of lists of lists, as an array."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.flatten()
    return values.to_numpy().reshape(*shape)


@pytest.mark.parametrize(
    ("store_dtype", "dtype"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", np.float32)],
)
@pytest.mark.parametrize("positions", ["last", "all"])
def test_every_vector_is_the_stores(make_store, tmp_path, positions, store_dtype, dtype):
    """default and all_layers, bit for bit; bfloat16 is exact in float32."""
    store = make_store(tmp_path / "store", positions=positions, store_dtype=store_dtype)
    folder = tmp_path / "dataset"
    manifest = build(store, folder, max_shard_size="1MB")
    expected = {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in store_tensors(store).items()
    }
    rows = len(expected["sample"])
    assert manifest.n_rows == rows
    table = parquet_table(folder, "all_layers/train-*.parquet")
    for name, tensor in expected.items():
        if tensor.ndim == 2:
            found = vectors(table[name], rows, 64)
            assert found.dtype == dtype and np.array_equal(found, tensor), name
        elif name == "kind":
            names = ["text", "image", "generated"]
            assert table[name].to_pylist() == [names[code] for code in tensor]
        else:
            assert table[name].to_pylist() == tensor.tolist()
    for layer in (0, 15, 16, 30):
        table = parquet_table(folder, f"data/L{layer}-*.parquet")
        n_targets = {0: 16, 15: 16, 16: 15, 30: 1}[layer]
        assert np.array_equal(vectors(table["x"], rows, 64), expected[f"x_{layer:02d}"])
        targets = vectors(table["targets"], rows, n_targets, 64)
        for k in range(n_targets):
            assert np.array_equal(targets[:, k], expected[f"mlp_out_{layer + 1 + k:02d}"])
        assert table["image"].to_pylist() == [f"AMBER_{s + 1}.jpg" for s in expected["sample"]]
        assert table["id"].to_pylist() == [101 + s for s in expected["sample"].tolist()]


@pytest.mark.parametrize("most_threads", [1, 4], ids=["processes", "threads"])
def test_processes_and_shards_change_no_value(
    all_store, all_dataset, tmp_path, monkeypatch, most_threads
):
    """Two at once write the same files as one; the shards' rows are those of a single file."""
    monkeypatch.setattr("builder.shards.write._MOST_THREADS", most_threads)
    build(all_store, tmp_path / "two", max_shard_size="1MB", num_proc=2)
    for path in sorted(all_dataset.rglob("*.*")):
        again = tmp_path / "two" / path.relative_to(all_dataset)
        assert path.read_bytes() == again.read_bytes(), path.name
    assert len(list(all_dataset.glob("data/L0-*.parquet"))) > 1
    build(all_store, tmp_path / "one", max_shard_size="1GB")
    assert len(list((tmp_path / "one").glob("data/L0-*.parquet"))) == 1
    many = parquet_table(all_dataset, "data/L0-*.parquet")
    assert many.equals(parquet_table(tmp_path / "one", "data/L0-*.parquet"))


def test_parquet_facts(all_dataset):
    """Encodings, compression, null-free elements, and row groups that end where samples end."""
    path = sorted(all_dataset.glob("data/L3-*.parquet"))[0]
    file = pq.ParquetFile(path)
    x = file.schema_arrow.field("x")
    targets = file.schema_arrow.field("targets")
    assert not x.nullable and not x.type.value_field.nullable
    assert not targets.type.value_field.nullable
    assert not targets.type.value_type.value_field.nullable
    group = file.metadata.row_group(0)
    for column in (group.column(n) for n in range(group.num_columns)):
        assert column.compression == "ZSTD" and not column.has_dictionary_page
        if column.path_in_schema.startswith(("x.", "targets.")):
            assert "BYTE_STREAM_SPLIT" in column.encodings and not column.is_stats_set
        else:
            assert column.is_stats_set
    groups = [
        file.read_row_group(number, columns=["sample"])["sample"].to_pylist()
        for number in range(file.num_row_groups)
    ]
    lengths = Counter(sample for group in groups for sample in group)
    assert len(groups) > 2 and min(lengths.values()) <= 64 < max(lengths.values())
    for group, following in pairwise(groups):
        if group[-1] == following[0]:
            assert lengths[group[-1]] > 64, "a sample that fits one row group was cut"
            assert set(group) == {group[-1]}, "a long sample shares its row groups with another"


def group_rows(path):
    """The rows of each row group of a shard, by pyarrow."""
    footer = pq.read_metadata(path)
    return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def test_row_groups_in_the_manifest(all_dataset):
    """Several to a shard, each list on one line of the file."""
    text = (all_dataset / "manifest.json").read_text()
    files = json.loads(text)["files"]
    lists = [f'"row_groups": {group_rows(all_dataset / path)}\n' for path in files if "/L" in path]
    assert max(line.count(",") for line in lists) > 2
    assert all(line in text for line in lists)


def test_manifest(last_dataset, last_store):
    """Checksums, sizes and rows are those of the files, and the recipe is the store's."""
    manifest = json.loads((last_dataset / "manifest.json").read_text())
    files = {p.relative_to(last_dataset).as_posix() for p in last_dataset.rglob("*.*")}
    assert set(manifest["files"]) == files - {"manifest.json"}
    for path, entry in manifest["files"].items():
        content = (last_dataset / path).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
        assert entry["rows"] == (8 if path.endswith(".parquet") else None)
        assert entry["row_groups"] == (group_rows(last_dataset / path) if entry["rows"] else None)
    assert manifest["recipe"] == json.loads((last_store / "capture.json").read_text())
    assert manifest["format_version"] == "1.1"
    assert list(manifest)[-1] == "self_sha256" and manifest["self_sha256"] == seal(manifest)


def test_fewer_targets_and_configs(last_store, tmp_path):
    build(last_store, tmp_path / "few", n_targets=4, configs=["default"])
    assert not (tmp_path / "few" / "all_layers").exists()
    table = parquet_table(tmp_path / "few", "data/L0-*.parquet")
    assert {len(row) for row in table["targets"].to_pylist()} == {4}
    assert (tmp_path / "few" / "statistics.safetensors").is_file()
    build(last_store, tmp_path / "all", configs=["all_layers"])
    assert not (tmp_path / "all" / "data").exists()
    one = (tmp_path / "few" / "statistics.safetensors").read_bytes()
    assert one == (tmp_path / "all" / "statistics.safetensors").read_bytes()
    with pytest.raises(ActivationsError, match="configs to build"):
        build(last_store, tmp_path / "none", configs=["L5"])


def refused(store, dataset, match):
    """Assert that a build fails and leaves nothing but what was there."""
    before = sorted(dataset.parent.rglob("*"))
    with pytest.raises(ActivationsError, match=match):
        build(store, dataset)
    assert sorted(dataset.parent.rglob("*")) == before


def test_refusals(last_store, tmp_path):
    """A folder in the way, an unfinished store, a truncated chunk, rows that do not fit."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    refused(last_store, tmp_path / "taken", "already holds something")
    store = tmp_path / "store"
    shutil.copytree(last_store, store)
    chunk = store / "chunks" / "chunk-00001.safetensors"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    refused(store, tmp_path / "dataset", r"chunk-00001\.safetensors is damaged")
    chunk.unlink()
    refused(store, tmp_path / "dataset", r"chunk-00001\.safetensors is missing")
    (store / "samples.jsonl").unlink()
    refused(store, tmp_path / "dataset", "not finished .1 chunks are missing")
    refused(tmp_path / "taken", tmp_path / "dataset", "not a capture store")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("most_threads", [0, 4], ids=["processes", "threads"])
@pytest.mark.parametrize("configs", [["default"], ["all_layers"], ["default", "all_layers"]])
def test_a_flipped_value_is_not_vouched_for(
    small_store, tmp_path, monkeypatch, most_threads, configs
):
    """Read for a shard or for the statistics alone: no folder, and the chunk is named.

    Shards that were finished are right, and kept: with the chunk put right, they are gone on with.
    """
    monkeypatch.setattr("builder.shards.write._MOST_THREADS", most_threads)
    store = tmp_path / "store"
    shutil.copytree(small_store, store)
    path = store / "chunks" / "chunk-00001.safetensors"
    before = {path.name for path in tmp_path.iterdir()}
    flip(path, first_byte(path, "x_03"))
    with pytest.raises(ActivationsError, match=r"chunk-00001\.safetensors is damaged .x_03 is"):
        build(store, tmp_path / "dataset", configs=configs, num_proc=1)
    assert {path.name for path in tmp_path.iterdir()} <= before | {".dataset.unfinished"}
    assert not list(tmp_path.rglob("manifest.json"))
    flip(path, first_byte(path, "x_03"))
    build(store, tmp_path / "dataset", configs=configs)
    assert {path.name for path in tmp_path.iterdir()} == before | {"dataset"}
    build(store, tmp_path / "undisturbed", configs=configs)
    assert files_of(tmp_path / "dataset") == files_of(tmp_path / "undisturbed")


def test_every_tensor_is_checked_by_build(small_store, tmp_path):
    """A bit of each, of vectors and of columns of integers."""
    store = tmp_path / "store"
    shutil.copytree(small_store, store)
    path = store / "chunks" / "chunk-00000.safetensors"
    names = sorted(load_file(path))
    assert len(names) == 11
    for name in names:
        flip(path, first_byte(path, name))
        with pytest.raises(ActivationsError, match=r"chunk-00000\.safetensors is damaged"):
            build(store, tmp_path / name)
        flip(path, first_byte(path, name))


def test_each_tensor_is_checked_once(all_store, tmp_path, monkeypatch):
    """In a process, however many shards and layers are made of it."""
    from llava_amber_activations.store import tensor_file

    checked = Counter()

    def count(file, name, look=None, check=tensor_file.TensorFile.check_tensor):
        checked[file.path.name, name] += 1
        check(file, name, look)

    monkeypatch.setattr(tensor_file.TensorFile, "check_tensor", count)
    build(all_store, tmp_path / "dataset", max_shard_size="1MB")
    assert len(checked) == 3 * (64 + 6) and set(checked.values()) == {1}


def test_a_store_of_format_1_0(last_store, tmp_path, last_dataset):
    """Its values are built as ever, checked by the checksums that it has."""
    store = make_store_1_0(shutil.copytree(last_store, tmp_path / "store"))
    found = verify(store)
    assert found.n_rows == 8 and "no checksums in format 1.0" in ", ".join(found.checks)
    build(store, tmp_path / "dataset")
    for path in sorted((last_dataset / "data").iterdir()):
        assert path.read_bytes() == (tmp_path / "dataset" / "data" / path.name).read_bytes()
    make_manifest_1_0(tmp_path / "dataset")
    assert verify(tmp_path / "dataset").n_rows == 8
    flip(store / "chunks" / "chunk-00001.safetensors", -1)
    for refuse in (verify, lambda store: build(store, tmp_path / "flipped")):
        with pytest.raises(
            ActivationsError, match=r"chunk-00001\.safetensors is damaged .it is not"
        ):
            refuse(store)


def test_built_already(small_store, make_small_store, tmp_path, cli):
    """The same store and options: nothing is done, and it is said. Anything else is refused."""
    dataset = tmp_path / "dataset"
    first = cli("build", small_store, dataset, "--n-targets", "1")
    assert first.returncode == 0 and "built already" not in first.stdout
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    again = cli("build", small_store, dataset, "--n-targets", "1")
    assert again.returncode == 0, again.stderr
    assert "built already from this store with these options" in again.stdout
    copied = shutil.copytree(small_store, tmp_path / "copy")
    build(copied, dataset, n_targets=1, configs=["all_layers", "default"], num_proc=2)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    other = make_small_store(tmp_path / "other", scale=2.0)
    for store, options in (
        (small_store, {}),
        (small_store, {"n_targets": 1, "configs": ["default"]}),
        (small_store, {"n_targets": 1, "max_shard_size": "1kB"}),
        (other, {"n_targets": 1}),
    ):
        with pytest.raises(ActivationsError, match="already holds something"):
            build(store, dataset, **options)
    flip(copied / "chunks" / "chunk-00000.safetensors", 200)
    with pytest.raises(ActivationsError, match=r"chunk-00000\.safetensors is damaged"):
        build(copied, dataset, n_targets=1)
    (dataset / "data" / "L0-00000-of-00001.parquet").unlink()
    with pytest.raises(ActivationsError, match=r"its data/L0-.* is missing or has changed since"):
        build(small_store, dataset, n_targets=1)


def test_a_killed_build_leaves_no_folder(last_store, tmp_path, monkeypatch):
    """What breaks off in the end leaves nothing that could be taken for a dataset."""
    import builder.folder.figures as figures

    def break_off(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw_figures", break_off)
    with pytest.raises(KeyboardInterrupt):
        build(last_store, tmp_path / "dataset")
    [kept] = tmp_path.iterdir()
    assert kept.name == ".dataset.unfinished"
    with pytest.raises(ActivationsError, match="is not a dataset of activations"):
        verify(kept / "dataset")
