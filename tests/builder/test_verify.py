"""verify: passes what is right, and names the first thing wrong, one defect at a time."""

import hashlib
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from manifests import changed_manifest

from builder.build import build
from builder.export import export
from builder.info import info
from builder.shards.writer import open_shard
from builder.verify import verify
from llava_amber_activations import (
    ActivationsError,
    load_activations,
    load_statistics,
    open_layer,
)
from llava_amber_activations.formats.arrow_vectors import vectors_to_arrow


@pytest.fixture
def folder(all_dataset, tmp_path):
    """A copy of a dataset folder to damage."""
    shutil.copytree(all_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def store(last_store, tmp_path):
    """A copy of a store to damage."""
    shutil.copytree(last_store, tmp_path / "store")
    return tmp_path / "store"


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def rewrite_x(folder, change):
    """Change x of the first row of L3 and make checksum and manifest agree with it."""
    path = sorted((folder / "data").glob("L3-*.parquet"))[0]
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    x = groups[0]["x"].combine_chunks().flatten().to_numpy().reshape(-1, 64).copy()
    change(x)
    at = groups[0].schema.get_field_index("x")
    groups[0] = groups[0].set_column(at, groups[0].schema.field(at), vectors_to_arrow(x))
    with open_shard(path, file.schema_arrow) as shard:
        for group in groups:
            shard.write_group([column.combine_chunks() for column in group.columns])
    edit_manifest(folder, path)
    return path


def edit_manifest(folder, path, **changes):
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][path.relative_to(folder).as_posix()]
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["bytes"] = path.stat().st_size
        entry.update(changes)


def test_what_is_right_passes(all_dataset, last_dataset, last_store, all_store):
    for path in (all_dataset, last_dataset):
        assert "default equals all_layers" in verify(path).checks
    assert verify(last_store).n_rows == 8
    # Three chunks, the recipe, the samples and the norms.
    assert verify(all_store).n_files == 6


def test_flipped_byte(folder, cli):
    path = sorted((folder / "all_layers").iterdir())[0]
    flip(path, 5000)
    with pytest.raises(ActivationsError, match=rf"{path.name} is not as it was written"):
        verify(folder)
    result = cli("verify", folder)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {path} is not as it was written")


def test_missing_and_stray_files(folder):
    path = sorted((folder / "data").glob("L7-*"))[0]
    path.rename(folder / "aside")
    with pytest.raises(ActivationsError, match=f"{path.name} is missing"):
        verify(folder)
    shutil.copy(folder / "aside", folder / "data" / "L7-stray.parquet")
    (folder / "aside").rename(path)
    with pytest.raises(ActivationsError, match=r"L7-stray\.parquet is not in manifest\.json"):
        verify(folder)


def test_row_counts(folder):
    path = sorted((folder / "data").glob("L7-*"))[0]
    edit_manifest(folder, path, rows=3, row_groups=[3])
    with pytest.raises(ActivationsError, match=rf"{path.name} has \d+ rows, and manifest\.json 3"):
        verify(folder)


def test_row_groups(folder):
    """As many rows, cut elsewhere; and cut into more."""
    path = sorted((folder / "data").glob("L7-*"))[0]
    footer = pq.read_metadata(path)
    first, *others = (footer.row_group(number).num_rows for number in range(footer.num_row_groups))
    for said, how in (
        ([others[0], first, *others[1:]], f"row group 0 has {first} rows, not {others[0]}"),
        ([1, first - 1, *others], f"{footer.num_row_groups}, not {footer.num_row_groups + 1}"),
    ):
        edit_manifest(folder, path, row_groups=said)
        says = rf"{path.name} has other row groups than manifest\.json says \({how}\): build or"
        with pytest.raises(ActivationsError, match=says):
            verify(folder)


def test_a_split_with_fewer_rows(folder):
    """A shard that is gone from the manifest as well."""
    path = sorted((folder / "data").glob("L7-*"))[-1]
    with changed_manifest(folder) as manifest:
        del manifest["files"][path.relative_to(folder).as_posix()]
    path.unlink()
    with pytest.raises(ActivationsError, match=r"split L7 of default .* rows, and the others"):
        verify(folder)


def test_a_value_that_differs_between_configs(folder):
    """The last bit of one value, with checksums that agree."""

    def last_bit(x):
        x.view(np.uint32)[0, 5] ^= 1

    rewrite_x(folder, last_bit)
    with pytest.raises(ActivationsError, match=r"x of rows 0 to .* of split L3 .* differs from"):
        verify(folder)


def test_a_value_that_is_not_finite(folder):
    def nan(x):
        x[0, 5] = np.nan

    rewrite_x(folder, nan)
    with pytest.raises(ActivationsError, match="x of sample 0 in L3 is not finite"):
        verify(folder)


def test_store_with_a_flipped_byte(store):
    flip(store / "chunks" / "chunk-00001.safetensors", -100)
    with pytest.raises(ActivationsError, match=r"chunk-00001\.safetensors is damaged .\w+ is not"):
        verify(store)


def test_store_that_is_cut_short(store):
    path = store / "chunks" / "chunk-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ActivationsError, match=r"chunk-00002\.safetensors is damaged"):
        verify(store)


def test_neither_store_nor_folder(tmp_path):
    with pytest.raises(ActivationsError, match="no manifest"):
        verify(tmp_path)
    with pytest.raises(ActivationsError, match="is not a folder"):
        verify(tmp_path / "absent")


def test_info(cli, last_store, all_dataset, store):
    """Of a store, an unfinished one and a folder; the command prints the same on stdout."""
    lines = dict(info(last_store))
    assert (lines["samples"], lines["rows"], lines["chunks"]) == ("8", "8", "3 of 3")
    assert lines["dtype"] == "float32" and lines["prompt"] == "USER: <image>\\n{query} ASSISTANT:"
    (store / "samples.jsonl").unlink()
    (store / "chunks" / "chunk-00000.safetensors").unlink()
    assert dict(info(store))["chunks"] == "2 of 3"
    lines = dict(info(all_dataset))
    size = sum(path.stat().st_size for path in all_dataset.rglob("*.*"))
    size -= (all_dataset / "manifest.json").stat().st_size
    assert lines["bytes"].startswith(f"{size} (")
    assert lines["targets"] == "16 for L0 … 1 for L30"
    assert lines["x is"] == "input of post_attention_layernorm"
    assert lines["mlp_out is"] == "output of mlp"
    result = cli("info", all_dataset)
    assert result.returncode == 0
    printed = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert {name: value.strip() for name, value in printed.items()} == lines


def test_info_and_card_say_what_was_not_used(last_store, last_dataset):
    """Unlike what nobody knows: nobody asked for transcoders, or for responses."""
    card = (last_dataset / "README.md").read_text(encoding="utf-8")
    lines = [dict(info(last_store)), dict(info(last_dataset))]
    for field in ("sample_positions", "always", "max_new_tokens", "transcoders_sha256"):
        assert f"| {field} | not used |" in card
        assert {each[field.removesuffix("_sha256")] for each in lines} == {"not used"}
    assert "| unknown |" not in card


def test_info_of_one_layer(make_small_store, tmp_path):
    """A model of one layer has no targets, and a folder all the same."""
    store = make_small_store(tmp_path / "store", n_layers=1)
    assert dict(info(store))["layers"] == "0 … 0, width 8"
    build(store, tmp_path / "dataset")
    assert verify(tmp_path / "dataset").n_rows == 9
    lines = dict(info(tmp_path / "dataset"))
    assert lines["targets"] == "none: no layer comes after the only one"
    store = make_small_store(tmp_path / "two", n_layers=2)
    build(store, tmp_path / "of-two")
    assert dict(info(tmp_path / "of-two"))["targets"] == "1 for L0"


def test_a_folder_has_no_revision(all_dataset, last_store, tmp_path, cli):
    """Said by everything that takes a revision, instead of being ignored."""
    for read in (
        lambda: info(all_dataset, revision="v1.0"),
        lambda: info(last_store, revision="v1.0"),
        lambda: open_layer(all_dataset, 0, revision="v1.0"),
        lambda: load_activations(all_dataset, 0, revision="v1.0"),
        lambda: load_statistics(all_dataset, revision="v1.0"),
        lambda: export(all_dataset, tmp_path / "pt", layout="layers", revision="v1.0"),
    ):
        with pytest.raises(ActivationsError, match=r"is a folder, which has no revision 'v1\.0'"):
            read()
    assert not (tmp_path / "pt").exists()
    result = cli("info", all_dataset, "--revision", "main")
    assert result.returncode == 1 and "has no revision 'main'" in result.stderr
