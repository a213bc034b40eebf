"""Pages decoded here against pyarrow's own decoding, and what is left to pyarrow."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vector_shards import NAMES, bits, drawn, write_shard

from llava_amber_activations.formats.arrow_vectors import (
    vector_type,
)
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.sources.shard_file import ShardFile


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("groups", "width"),
    [((64, 64, 5), 32), ((1,), 1), ((3,), 7), ((200,), 5003)],
    ids=["groups", "one", "odd", "pages"],
)
def test_every_bit(tmp_path, groups, width, dtype):
    """The last shape fills several pages, which end in the middle of rows."""
    written = write_shard(tmp_path / "shard", groups, width, dtype)
    with ShardFile(str(tmp_path / "shard")) as shard:
        for number, vectors in enumerate(written):
            found = read_vectors(shard, number, NAMES)
            assert found is not None and list(found) == list(NAMES)
            for name in NAMES:
                assert found[name].dtype == dtype
                assert np.array_equal(bits(found[name]), bits(vectors[name]))


def test_into_the_callers_rows(tmp_path):
    """Rows that are not neighbours: targets side by side, as a layer's table wants them."""
    written = write_shard(tmp_path / "shard", (10,), 12, "float16")[0]
    targets = np.zeros((10, 2, 12), np.float16)
    with ShardFile(str(tmp_path / "shard")) as shard:
        read_vectors(shard, 0, NAMES[1:], out=[targets[:, 0], targets[:, 1]])
    for number, name in enumerate(NAMES[1:]):
        assert np.array_equal(bits(targets[:, number]), bits(written[name]))


def test_only_the_columns_bytes_are_read(tmp_path, monkeypatch):
    """Neighbours in one read, others not at all."""
    write_shard(tmp_path / "shard", (64,), 512, "float16")
    metadata = pq.read_metadata(tmp_path / "shard").row_group(0)
    columns = {
        metadata.column(n).path_in_schema.split(".")[0]: metadata.column(n) for n in range(11)
    }
    reads = []
    original = ShardFile.read

    def read(self, start, size):
        reads.append((start, size))
        return original(self, start, size)

    monkeypatch.setattr(ShardFile, "read", read)
    with ShardFile(str(tmp_path / "shard")) as shard:
        assert read_vectors(shard, 0, ("x_00", "mlp_out_01")) is not None
        assert read_vectors(shard, 0, NAMES[1:]) is not None
    far = [columns[name] for name in ("x_00", "mlp_out_01")]
    near = [columns[name] for name in NAMES[1:]]
    assert reads == [
        *((column.data_page_offset, column.total_compressed_size) for column in far),
        (near[0].data_page_offset, sum(column.total_compressed_size for column in near)),
    ]


def foreign(path, vectors, nullable=False, **options):
    element = pa.field("element", pa.float16(), nullable=nullable)
    type_ = pa.list_(element, vectors.shape[1])
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=type_)
    table = pa.table([array], schema=pa.schema([pa.field("x_00", type_, nullable=nullable)]))
    split = {"x_00.list.element": "BYTE_STREAM_SPLIT"}
    defaults = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    defaults |= {"column_encoding": split}
    pq.write_table(table, path, **{**defaults, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "snappy"},
        {"compression": "none"},
        {"column_encoding": None},
        {"column_encoding": None, "use_dictionary": True},
        {"data_page_version": "2.0"},
        {"nullable": True},
    ],
    ids="-".join,
)
def test_what_pyarrow_must_read(tmp_path, options):
    """Whatever another writer chose is left alone; the very same with our choices is read."""
    vectors = drawn(8, 16, "float16")
    foreign(tmp_path / "ours", vectors)
    foreign(tmp_path / "other", vectors, **options)
    with ShardFile(str(tmp_path / "ours")) as shard:
        assert np.array_equal(bits(read_vectors(shard, 0, ["x_00"])["x_00"]), bits(vectors))
    with ShardFile(str(tmp_path / "other")) as shard:
        assert read_vectors(shard, 0, ["x_00"]) is None


def test_missing_elements_are_not_numbers(tmp_path):
    """A null among the elements of a nullable list is left to pyarrow."""
    type_ = pa.list_(pa.float16(), 2)
    array = pa.array([[np.float16(1), None], [np.float16(2), np.float16(3)]], type_)
    split = {"x_00.list.element": "BYTE_STREAM_SPLIT"}
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    options |= {"column_encoding": split}
    pq.write_table(pa.table({"x_00": array}), tmp_path / "nulls", **options)
    with ShardFile(str(tmp_path / "nulls")) as shard:
        assert read_vectors(shard, 0, ["x_00"]) is None


def test_columns_that_are_not_there(tmp_path):
    write_shard(tmp_path / "shard", (4,), 8, "float16")
    with ShardFile(str(tmp_path / "shard")) as shard:
        assert read_vectors(shard, 0, ["x_07"]) is None
        assert read_vectors(shard, 0, ["sample"]) is None


def test_a_dataset_that_was_built_is_read_this_way(last_dataset):
    """So that the tests of reading, and users, do not all take the slow way unnoticed."""
    (path,) = (last_dataset / "all_layers").glob("*.parquet")
    with ShardFile(str(path)) as shard:
        assert read_vectors(shard, 0, [f"mlp_out_{n:02d}" for n in range(32)]) is not None


def test_the_type_is_the_schemas(tmp_path):
    """The writer's type and the reader's are one."""
    write_shard(tmp_path / "shard", (2,), 8, "float32")
    assert pq.read_schema(tmp_path / "shard").field("x_00").type == vector_type(8, "float32")
