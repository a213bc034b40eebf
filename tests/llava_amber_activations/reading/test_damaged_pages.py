"""Damaged pages: what pyarrow reads of them, or an error that says so, and nothing is claimed."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_shards import bits, drawn, write_shard

from llava_amber_activations import ActivationsError
from llava_amber_activations.formats.arrow_vectors import (
    arrow_to_vectors,
)
from llava_amber_activations.reading.page_headers import read_struct
from llava_amber_activations.reading.vector_pages import read_vectors
from llava_amber_activations.sources.shard_file import ShardFile


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
