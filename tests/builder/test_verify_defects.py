"""verify, beyond checksums: every config and column, every byte of a header, features."""

import errno
import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifests import changed_manifest
from safetensors.torch import load_file, save_file

from builder.build import build
from builder.import_pt import import_pt
from builder.info import info
from builder.verify import verify
from llava_amber_activations import ActivationsError, load_statistics
from llava_amber_activations.formats.arrow_vectors import vector_type, vectors_to_arrow
from llava_amber_activations.store.chunk import write_chunk
from llava_amber_activations.store.samples import SampleRecord, read_samples


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
    assert len(files) == 10
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ActivationsError, match=rf"{path.name} is not as it was written"):
            verify(folder)
        path.write_bytes(content)
    assert verify(folder).n_files == 10


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


def rewrite_table(folder, name, change):
    """Change a Parquet file's table, and make the manifest agree with the file."""
    path = folder / name
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][name]
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["bytes"] = path.stat().st_size


def as_float16(table):
    """The vectors x of a table as float16."""
    at = table.schema.get_field_index("x")
    numbers = table["x"].combine_chunks().flatten().to_numpy().astype(np.float16).reshape(-1, 8)
    field = pa.field("x", vector_type(8, "float16"), nullable=False)
    return table.set_column(at, field, vectors_to_arrow(numbers))


def narrower(table):
    """The vectors x of a table without their last number."""
    at = table.schema.get_field_index("x")
    numbers = table["x"].combine_chunks().flatten().to_numpy().reshape(-1, 8)[:, :7]
    field = pa.field("x", vector_type(7, "float32"), nullable=False)
    return table.set_column(at, field, vectors_to_arrow(np.ascontiguousarray(numbers)))


def unsigned(table):
    at = table.schema.get_field_index("position")
    return table.set_column(at, "position", table["position"].cast(pa.uint8()))


def without(table):
    return table.drop_columns("token_id")


def of_other_layers(table):
    metadata = {b"llava_amber_activations": b'{"format_version": "1.1", "n_layers": 5}'}
    return table.replace_schema_metadata({**table.schema.metadata, **metadata})


def of_no_project(table):
    return table.replace_schema_metadata({})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (as_float16, r"x of .*L1-0.* is .*halffloat.*by manifest\.json it is .*float"),
        (narrower, r"x of .*L1-0.*\[7\].*by manifest\.json it is .*\[8\]"),
        (unsigned, r"position of .*L1-0.* is uint8, and by manifest\.json it is int32"),
        (without, r"L1-0.* has no column token_id"),
        (
            of_other_layers,
            r"L1-0.* is of a model of 5 layers, and the recipe",
        ),
        (of_no_project, r"L1-0.* names no format version"),
    ],
)
def test_a_shard_that_the_manifest_does_not_say(folder, change, match):
    """A hand-mixed folder under right checksums."""
    rewrite_table(folder, OWN, change)
    with pytest.raises(ActivationsError, match=match):
        verify(folder)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("dtype", "float16", r"is .*float.*by manifest\.json it is .*halffloat"),
        ("hidden_size", 9, r"\[8\].*by manifest\.json it is .*\[9\]"),
        ("n_layers", 5, "is of a model of 4 layers, and the recipe"),
        ("n_targets", 1, r"targets of rows 0 to 8 of split L0 .* differs"),
        ("n_rows", 8, "9 rows"),
    ],
)
def test_a_manifest_of_other_shards(folder, key, value, match):
    """Every number and word of it that the files say too, under a checksum made anew."""
    with changed_manifest(folder) as manifest:
        holder = manifest["recipe"] if key in ("hidden_size", "n_layers") else manifest
        holder[key] = value
    with pytest.raises(ActivationsError, match=match):
        verify(folder)


def test_targets_of_a_folder_without_all_layers(small_store, tmp_path):
    build(small_store, tmp_path / "dataset", configs=["default"])
    verify(tmp_path / "dataset")
    with changed_manifest(tmp_path / "dataset") as manifest:
        manifest["n_targets"] = 3
    with pytest.raises(ActivationsError, match=r"split L0 .* has 2 targets, and by"):
        verify(tmp_path / "dataset")


@pytest.mark.parametrize("change", ["dtype", "shape", "missing"])
def test_statistics_of_another_model(folder, change):
    path = folder / "statistics.safetensors"
    tensors = load_file(path)
    if change == "dtype":
        tensors["x_mean"] = tensors["x_mean"].half()
    elif change == "shape":
        tensors["x_mean_norm"] = tensors["x_mean_norm"][:3].clone()
    else:
        del tensors["x_std"]
    save_file(tensors, path)
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][path.name]
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["bytes"] = path.stat().st_size
    for read in (verify, load_statistics):
        with pytest.raises(ActivationsError, match=r"x_(mean|mean_norm|std).*build or download"):
            read(folder)


@pytest.mark.parametrize("path", ["../secret", "/etc/hostname", "data/../../secret"])
def test_paths_outside_the_folder(folder, path):
    """Nothing outside is hashed or opened: the manifest is refused."""
    (folder.parent / "secret").write_text("secret")
    with changed_manifest(folder) as manifest:
        digest = hashlib.sha256(b"secret").hexdigest()
        manifest["files"][path] = {"sha256": digest, "bytes": 6, "rows": None}
    for read in (verify, load_statistics, info):
        with pytest.raises(ActivationsError, match="is not one inside the folder"):
            read(folder)


def test_a_file_that_is_a_folder(folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    with pytest.raises(ActivationsError, match=r"manifest\.json is a folder, and should be a file"):
        verify(folder)


def test_statistics_that_are_gone(folder):
    (folder / "statistics.safetensors").unlink()
    with pytest.raises(ActivationsError, match=r"statistics\.safetensors is missing: build or"):
        load_statistics(folder)


def test_a_disk_that_fails_while_it_is_read(folder, monkeypatch):
    """The system's error names no file; the sentence does."""

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("builder.verify.sha256_of", fail)
    with pytest.raises(ActivationsError, match=r"dataset/\S+ cannot be read .Input/output error"):
        verify(folder)
