"""verify, beyond checksums: every config and column, every byte of a header, features."""

import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifests import changed_manifest
from safetensors.torch import load_file

from builder.import_pt import import_pt
from builder.verify import verify
from llava_amber_activations import ActivationsError
from llava_amber_activations.store import SampleRecord, read_samples, write_chunk


@pytest.fixture
def folder(small_dataset, tmp_path):
    """A copy of a dataset folder to damage."""
    shutil.copytree(small_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def store(small_store, tmp_path):
    """A copy of a store to damage."""
    shutil.copytree(small_store, tmp_path / "store")
    return tmp_path / "store"


def put_last(value):
    def edit(values):
        values[-1] = value

    return edit


def last_bit(values):
    values.view(np.uint32)[-1] ^= 1


def edited(array, edit):
    """Copy an array, its innermost numbers changed by `edit`."""
    if pa.types.is_fixed_size_list(array.type):
        return pa.FixedSizeListArray.from_arrays(edited(array.flatten(), edit), type=array.type)
    if pa.types.is_list(array.type):
        values = edited(array.flatten(), edit)
        return pa.ListArray.from_arrays(array.offsets, values, type=array.type)
    numbers = array.to_numpy().copy()
    edit(numbers)
    return pa.array(numbers, array.type)


def rewrite(folder, name, column, edit):
    """Change a column of a Parquet file and make the manifest agree with the file."""
    path = folder / name
    table = pq.ParquetFile(path).read()
    at = table.schema.get_field_index(column)
    array = edited(table[column].combine_chunks(), edit)
    pq.write_table(table.set_column(at, table.schema.field(at), array), path)
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][name]
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["bytes"] = path.stat().st_size


OWN, ALL = "data/L1-00000-of-00001.parquet", "all_layers/train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("name", "column", "edit", "match"),
    [
        (OWN, "targets", last_bit, "targets of rows 0 to 8 of split L1 .* differs from"),
        (OWN, "targets", put_last(np.nan), "targets of sample 4 in L1 is not finite"),
        (OWN, "sample", put_last(9), "split L1 .* of other samples or positions"),
        (OWN, "id", put_last(9), "split L1 .* of other samples or positions"),
        (OWN, "position", put_last(9), "split L1 .* of other samples or positions"),
        (OWN, "token_id", put_last(9), "split L1 .* of other samples or positions"),
        (ALL, "x_02", last_bit, "x of rows 0 to 8 of split L2 .* differs from"),
        (ALL, "mlp_out_02", last_bit, "targets of rows 0 to 8 of split L0 .* differs from"),
        # x of the last layer and mlp_out of the first are in no layer's own split.
        (ALL, "x_03", put_last(-np.inf), "x_03 of sample 4 in all_layers/train is not finite"),
        (ALL, "mlp_out_00", put_last(np.nan), "mlp_out_00 of sample 4 in all_layers/train is not"),
    ],
)
def test_consistent_change(folder, name, column, edit, match):
    """One number changed, checksums and sizes right."""
    rewrite(folder, name, column, edit)
    with pytest.raises(ActivationsError, match=match):
        verify(folder)


@pytest.mark.parametrize("n_rows", [8, 10])
def test_number_of_rows(folder, n_rows):
    with changed_manifest(folder) as manifest:
        manifest["n_rows"] = n_rows
    with pytest.raises(ActivationsError, match=f"split L0 of default .* 9 rows.* {n_rows}"):
        verify(folder)


def test_any_damaged_file(folder):
    """Every file but the manifest is under its checksum: card, figures and statistics too."""
    files = [path for path in folder.rglob("*.*") if path.is_file()]
    files.remove(folder / "manifest.json")
    assert len(files) == 8
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ActivationsError, match=rf"{path.name} is not as it was written"):
            verify(folder)
        path.write_bytes(content)
    assert verify(folder).n_files == 8


def test_any_damaged_byte_of_a_chunks_header(store):
    """Names, sizes, checksums, the samples' records: always one sentence that names the chunk."""
    path = store / "chunks" / "chunk-00001.safetensors"
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    for at in range(0, size, 3):
        if content[at : at + 1] == b" ":
            continue
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(ActivationsError, match=r"chunk-00001\.safetensors"):
            verify(store)


def test_any_damaged_byte_of_the_samples(store):
    path = store / "samples.jsonl"
    content = path.read_bytes()
    for at in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(ActivationsError, match=r"samples\.jsonl"):
            verify(store)


def test_store_with_values_that_are_not_finite(store):
    """Written so, with the right checksum."""
    path = store / "chunks" / "chunk-00001.safetensors"
    tensors = load_file(path)
    tensors["mlp_out_03"][2, 7] = float("nan")
    records = [SampleRecord(**vars(record)) for record in read_samples(store)[2:4]]
    write_chunk(path, tensors, records)
    with pytest.raises(ActivationsError, match=r"mlp_out_03 of .*chunk-00001\.safetensors"):
        verify(store)


@pytest.fixture
def features(write_samples_layout, tmp_path):
    """A folder of `clt_features`: samples of 3, 1 and 2 rows."""
    write_samples_layout(tmp_path / "pt", lengths=(3, 1, 2))
    import_pt(tmp_path / "pt", tmp_path / "features")
    assert verify(tmp_path / "features").n_rows == 6
    return tmp_path / "features"


def test_features_that_are_not_finite(features):
    name = "clt_features/L1-00000-of-00001.parquet"
    rewrite(features, name, "features", put_last(np.nan))
    with pytest.raises(ActivationsError, match="features of sample 2 in clt_features/L1 is not"):
        verify(features)


def test_features_of_other_samples(features):
    """Splits of as many rows, but not of the same samples: export says that verify says where."""
    rewrite(features, "clt_features/L1-00000-of-00001.parquet", "sample", put_last(7))
    with pytest.raises(ActivationsError, match=r"L1.* samples"):
        verify(features)


def test_number_of_rows_of_features(features):
    with changed_manifest(features) as manifest:
        manifest["n_rows"] = 7
    with pytest.raises(ActivationsError, match=r"clt_features .* 6 rows"):
        verify(features)


def test_layers_of_other_samples(write_layers, tmp_path):
    """The same in a folder of some layers only, which has no `all_layers` to compare with."""
    write_layers(tmp_path / "pt", layers=(0, 2))
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    assert verify(tmp_path / "dataset").n_rows == 9
    name = "data/L2-00000-of-00001.parquet"
    rewrite(tmp_path / "dataset", name, "sample", put_last(9))
    with pytest.raises(ActivationsError, match=r"L2.* samples"):
        verify(tmp_path / "dataset")
