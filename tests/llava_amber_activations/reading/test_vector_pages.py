"""Pages decoded here against pyarrow's own decoding, and what is left to pyarrow."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.shards.writer import open_shard
from llava_amber_activations import ActivationsError
from llava_amber_activations.formats.arrow_vectors import (
    arrow_to_vectors,
    vector_type,
    vectors_to_arrow,
)
from llava_amber_activations.formats.schema import all_layers_schema
from llava_amber_activations.reading.page_headers import read_struct
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.sources.shard_file import ShardFile

NAMES = ("x_00", "mlp_out_00", "mlp_out_01")


def drawn(rows, width, dtype, seed=0):
    """Any bit patterns: infinities, NaNs with payloads, subnormals, negative zeros."""
    bits = np.random.default_rng(seed).integers(0, 256, (rows, width, np.dtype(dtype).itemsize))
    return bits.astype(np.uint8).reshape(rows, -1).view(dtype)


def write_shard(path, groups, width, dtype):
    """Write a shard as `build` does; returns the vectors of each row group by their names."""
    schema = all_layers_schema(NAMES, width, dtype, 2)
    written = []
    with open_shard(path, schema) as shard:
        for seed, rows in enumerate(groups):
            vectors = [drawn(rows, width, dtype, 10 * seed + n) for n in range(len(NAMES))]
            leading = [
                pa.array(["a"] * rows)
                if field.type == pa.string()
                else pa.array([0] * rows, "int32")
                for field in schema
                if not pa.types.is_fixed_size_list(field.type)
            ]
            shard.write_group([*leading, *map(vectors_to_arrow, vectors)])
            written.append(dict(zip(NAMES, vectors, strict=True)))
    return written


def bits(vectors):
    return np.ascontiguousarray(vectors).view(f"u{vectors.dtype.itemsize}")


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "shard"
    write_shard(path, (6,), 16, "float16")
    return path


@settings(max_examples=300)
@given(st.data())
def test_damaged_pages(whole, data):
    """Any byte of a column changed: what pyarrow reads, or nothing, and never another error.

    Where pyarrow refuses a page's header, but not what it needs of it, the values are the right
    ones. A claim that the row group has no room for is said at once.
    """
    content = bytearray(whole.read_bytes())
    column = pq.read_metadata(whole).row_group(0).column(8)
    at = column.data_page_offset + data.draw(st.integers(0, column.total_compressed_size - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = whole.with_name("damaged")
    path.write_bytes(content)
    with ShardFile(str(path)) as shard:
        try:
            found = read_vectors(shard, 0, ["x_00"])
        except ActivationsError as error:
            assert f"row group 0 of {path} is damaged" in str(error)
            return
        if found is None:
            return
        try:
            table = shard.parquet.read_row_group(0, columns=["x_00"])
            values = table["x_00"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        except OSError:
            values = drawn(6, 16, "float16")
        assert np.array_equal(bits(found["x_00"]).reshape(-1), bits(values).reshape(-1))


def test_the_type_is_the_schemas(tmp_path):
    """The writer's type and the reader's are one."""
    write_shard(tmp_path / "shard", (2,), 8, "float32")
    assert pq.read_schema(tmp_path / "shard").field("x_00").type == vector_type(8, "float32")


def test_any_flipped_byte_of_a_checked_shard(whole, tmp_path):
    """Most bytes of vectors do not compress: flipped, they would be other values, unnoticed."""
    column = pq.read_metadata(whole).row_group(0).column(8)
    content = whole.read_bytes()
    expected = drawn(6, 16, "float16")
    wrong = {True: 0, False: 0}
    for at in range(
        column.data_page_offset, column.data_page_offset + column.total_compressed_size
    ):
        changed = bytearray(content)
        changed[at] ^= 0x10
        (tmp_path / "shard").write_bytes(changed)
        for checked in wrong:
            with ShardFile(str(tmp_path / "shard"), checked=checked) as shard:
                try:
                    found = read_vectors(shard, 0, ["x_00"])
                    if found is None:
                        table = shard.parquet.read_row_group(0, columns=["x_00"])
                        found = {"x_00": arrow_to_vectors(table["x_00"])}
                except (ActivationsError, OSError, pa.ArrowException):
                    continue
            if len(found["x_00"]) < 6:
                continue  # a page of no known type, which whoever reads a layer notices
            wrong[checked] += not np.array_equal(bits(found["x_00"]), bits(expected))
    assert wrong[True] == 0
    assert wrong[False] > 100


def varint(number):
    """A number as Thrift's compact protocol writes it, least bits first."""
    number, out = (number << 1) ^ (number >> 63), bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def page_header(uncompressed, compressed, n_values):
    """A data page's header without the encoding of repetition levels, which no reader looks at."""
    page = b"\x15" + varint(n_values) + b"\x15" + varint(9) + b"\x15" + varint(3) + b"\x00"
    sizes = b"\x15" + varint(uncompressed) + b"\x15" + varint(compressed)
    return b"\x15" + varint(0) + sizes + b"\x2c" + page + b"\x00"


def with_first_page(whole, path, content):
    """Copy a shard with other bytes at the beginning of x_00; return where its column lies."""
    column = pq.read_metadata(whole).row_group(0).column(8)
    begin = column.data_page_offset
    changed = bytearray(whole.read_bytes())
    changed[begin : begin + len(content)] = content
    path.write_bytes(changed)
    return column


@pytest.mark.parametrize(
    "content",
    [
        b"\x1c" * 150,
        b"\x15" + b"\xff" * 149,
        b"\x15" + b"\x80" * 11 + b"\x00",
        b"\x14" + b"\xff" * 9,
    ],
    ids=["structs in structs", "a number without an end", "eleven bytes", "an i16 of nine bytes"],
)
def test_headers_that_are_none(whole, tmp_path, content):
    """They are left to pyarrow, which refuses them; nothing else happens."""
    with_first_page(whole, tmp_path / "shard", content)
    with pytest.raises((ValueError, LookupError)):
        read_struct(memoryview(content), 0)
    with ShardFile(str(tmp_path / "shard")) as shard:
        assert read_vectors(shard, 0, ["x_00"]) is None


@pytest.mark.parametrize("claim", ["n_values", "uncompressed", "compressed"])
def test_what_a_page_claims_is_bounded(whole, tmp_path, claim):
    """2^27 values of a page that holds 96, or as many bytes, are not made room for."""
    first = pq.read_metadata(whole).row_group(0).column(8).data_page_offset
    header, begin = read_struct(memoryview(whole.read_bytes()), first)
    claims = {"uncompressed": header[2], "compressed": header[3], "n_values": header[5][1]}
    assert whole.read_bytes()[first:begin].startswith(b"\x15\x00\x15" + varint(header[2]))
    claims[claim] = 2**27 - 1
    with_first_page(whole, tmp_path / "shard", page_header(**claims))
    with ShardFile(str(tmp_path / "shard")) as shard:
        tracemalloc.start()
        try:
            with pytest.raises(
                ActivationsError, match=r"row group 0 of .*shard is damaged \(a page"
            ):
                read_vectors(shard, 0, ["x_00"])
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()
