"""Shards that are not what their manifest says, or damaged: one sentence that names the file."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import changed_manifest

from builder.build import build
from builder.shards.writer import open_shard
from llava_amber_activations import (
    ActivationsError,
    LlavaAmberActivations,
    activation_batches,
    load_activations,
    open_layer,
)
from llava_amber_activations.formats.arrow_vectors import vectors_to_arrow
from llava_amber_activations.formats.columns import INTEGERS, LEADING
from llava_amber_activations.formats.schema import all_layers_schema
from llava_amber_activations.reading.wanted_layer import WantedLayer
from llava_amber_activations.sources import footers
from llava_amber_activations.sources.footers import NOTHING_EXPECTED, Expected, check_footer
from llava_amber_activations.streams.layer_stream import LayerStream


@pytest.fixture(scope="module")
def dataset(all_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    build(all_store, folder, n_targets=2, configs=["all_layers"], max_shard_size="1MB")
    return folder


@pytest.fixture
def folder(dataset, tmp_path):
    """A copy of the dataset that may be damaged, in several shards."""
    shutil.copytree(dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def read_all(folder, way, cache):
    """Read a layer to its end, in one of the three ways."""
    if way == "open_layer":
        layer = open_layer(folder, 4)
    else:
        layer = load_activations(folder, 4, streaming=way == "streaming", cache_dir=cache)
    return sum(len(batch["x"]) for batch in activation_batches(layer, 50))


LAST_LEADING = len(LEADING) - 1
WAYS = pytest.mark.parametrize("way", ["open_layer", "streaming", "prepared"])


def rewrite(path, change):
    """Write a shard anew, its table changed, and keep its place among the others."""
    table = change(pq.read_table(path))
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=64)


def narrower(table, width=32, dtype=np.float32):
    """The same rows with other vectors."""
    for name in table.column_names:
        if name.startswith(("x_", "mlp_out_")):
            array = vectors_to_arrow(np.ones((len(table), width), dtype))
            table = table.set_column(
                table.schema.get_field_index(name), pa.field(name, array.type), array
            )
    return table


@WAYS
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (narrower, r"has vectors of 32 float32 in x_00, .* manifest says 64 float32"),
        (
            lambda table: narrower(table, 64, np.float16),
            r"has vectors of 64 float16 in x_00, .* manifest says 64 float32",
        ),
        (lambda table: table.slice(1), r"has \d+ rows, and the dataset's manifest says \d+"),
    ],
    ids=["width", "dtype", "rows"],
)
def test_a_shard_of_another_dataset(folder, tmp_path, way, change, says):
    """The last shard differs: it is refused by name, and no value of it is returned."""
    path = sorted((folder / "all_layers").iterdir())[-1]
    rewrite(path, change)
    with pytest.raises(ActivationsError, match=f"{re.escape(str(path))} {says}"):
        read_all(folder, way, tmp_path / "cache")


@WAYS
def test_samples_that_are_no_numbers(folder, tmp_path, way):
    """Numbers written as text would be left out of batches, as names of pictures are."""

    def as_text(table):
        at = table.schema.get_field_index("sample")
        return table.set_column(at, "sample", table["sample"].cast(pa.string()))

    path = sorted(folder.rglob("train-00001-*.parquet"))[0]
    rewrite(path, as_text)
    with pytest.raises(ActivationsError, match=r"train-00001-\S+ holds string in sample"):
        read_all(folder, way, tmp_path / "cache")


def test_the_builder_alone_checks_shards_against_each_other(folder, tmp_path):
    """Without a manifest, the first shard says what the others are."""
    rewrite(sorted((folder / "all_layers").iterdir())[-1], lambda t: narrower(t, 64, np.float16))
    builder = LlavaAmberActivations(
        dataset_name="mixed",
        data_files=str(folder / "all_layers" / "*.parquet"),
        layers=[3],
        cache_dir=str(tmp_path),
    )
    with pytest.raises(Exception, match="generating the dataset") as raised:
        builder.download_and_prepare()
    assert "has vectors of 64 float16 in x_00" in str(raised.value.__cause__)


@WAYS
@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"<html>not here</html>" * 9, b"\x00" * 64 + b"\xff\xff\xff\x7fPAR1"],
    ids=["empty", "magic", "html", "length"],
)
def test_what_is_no_parquet(folder, tmp_path, way, content):
    path = sorted((folder / "all_layers").iterdir())[-1]
    path.write_bytes(content)
    with pytest.raises(ActivationsError, match=f"{path.name} is damaged .*build or download"):
        read_all(folder, way, tmp_path / "cache")


@WAYS
def test_a_missing_shard(folder, tmp_path, way):
    path = sorted((folder / "all_layers").iterdir())[-1]
    path.unlink()
    says = f"{path.name}.* is missing|is missing .*{path.name}.*: build or download"
    with pytest.raises(ActivationsError, match=says):
        read_all(folder, way, tmp_path / "cache")


@WAYS
@pytest.mark.parametrize("column", ["x_04", "position", "kind", "image"])
def test_a_flipped_byte_names_shard_and_row_group(folder, tmp_path, way, column):
    """zstd notices the magic number of its frame; the sentence says where that was."""
    path = sorted((folder / "all_layers").iterdir())[-1]
    number = pq.read_metadata(path).num_row_groups - 1
    metadata = pq.read_metadata(path).row_group(number)
    (chunk,) = [
        metadata.column(n)
        for n in range(metadata.num_columns)
        if metadata.column(n).path_in_schema.partition(".")[0] == column
    ]
    content = bytearray(path.read_bytes())
    at = content.index(b"\x28\xb5\x2f\xfd", chunk.data_page_offset)
    content[at] ^= 0xFF
    path.write_bytes(content)
    if way != "prepared" and column == "image":
        assert read_all(folder, way, tmp_path)  # batches do not hold it
        return
    says = f"row group {number} of .*{path.name} is damaged .*build"
    with pytest.raises(ActivationsError, match=says):
        read_all(folder, way, tmp_path / "cache")


@pytest.mark.parametrize("way", ["dataset", "prepared"])
def test_what_is_prepared_was_checked(folder, tmp_path, way):
    """A byte of a vector that does not compress: only the page's checksum tells."""
    path = sorted((folder / "all_layers").iterdir())[0]
    metadata = pq.read_metadata(path).row_group(0)
    chunk = metadata.column(LAST_LEADING + 1 + 4)
    assert chunk.path_in_schema.startswith("x_04.")
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    assert read_all(folder, "open_layer", tmp_path)  # not noticed: it would take too long
    with pytest.raises(ActivationsError, match=f"row group 0 of .*{path.name} is damaged"):
        if way == "dataset":
            list(load_activations(folder, 4, streaming=True))
        else:
            load_activations(folder, 4, cache_dir=tmp_path / "cache")


@WAYS
def test_a_page_of_no_known_type(folder, tmp_path, way):
    """pyarrow leaves it out, and its rows would be missing, or others in their place."""
    path = sorted((folder / "all_layers").iterdir())[0]
    metadata = pq.read_metadata(path).row_group(0)
    content = bytearray(path.read_bytes())
    for column in (0, LAST_LEADING + 1 + 4):
        chunk = metadata.column(column)
        content[chunk.data_page_offset + 1] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(ActivationsError, match=f"row group 0 of .*{path.name} is damaged"):
            read_all(folder, way, tmp_path / f"cache-{column}")
        content[chunk.data_page_offset + 1] ^= 0x10


def footer_of(tmp_path, rows, row_group_rows, width=8):
    """Write a shard; return its address and its footer."""
    schema = all_layers_schema(["x_00", "mlp_out_00"], width, "float16", 1)
    numbers = pa.array(np.arange(rows, dtype=np.int32))
    columns = [numbers if name in INTEGERS else pa.array([""] * rows) for name in LEADING]
    x = np.arange(rows * width, dtype=np.float32).reshape(rows, width).astype(np.float16)
    table = pa.Table.from_arrays([*columns, *map(vectors_to_arrow, (x, -x))], schema=schema)
    path = tmp_path / "shard.parquet"
    with open_shard(path, schema) as shard:
        for start in range(0, rows, row_group_rows):
            shard.write_group(table.slice(start, row_group_rows).combine_chunks().columns)
    return str(path), pq.read_metadata(path)


def test_row_groups_of_gigabytes_are_claims(monkeypatch, tmp_path):
    """Zeros compress to nothing: what they would take in memory is bounded all the same."""
    assert footers._MOST_ROW_GROUP_BYTES == 2**30
    monkeypatch.setattr(footers, "_MOST_ROW_GROUP_BYTES", 2**20)
    path = tmp_path / "zeros.parquet"
    zeros = vectors_to_arrow(np.zeros((270, 2048), np.float16))
    pq.write_table(pa.table({"x_00": zeros}), path, compression="zstd", row_group_size=270)
    assert path.stat().st_size < 2**16
    with pytest.raises(ActivationsError, match="claims 270 rows of 4096 bytes, more than"):
        check_footer(str(path), pq.read_metadata(path), NOTHING_EXPECTED)


@WAYS
def test_row_groups_of_another_shard(folder, tmp_path, way):
    """What the manifest says of them is believed until rows are read, and not longer."""
    path = sorted((folder / "all_layers").iterdir())[-1]
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][path.relative_to(folder).as_posix()]
        (rows,) = entry["row_groups"]
        entry["row_groups"] = [1, rows - 1]
    says = rf"{re.escape(str(path))} has other row groups than the .*manifest says \(1, not 2\)"
    with pytest.raises(ActivationsError, match=says):
        read_all(folder, way, tmp_path / "cache")


@WAYS
def test_row_groups_that_a_manifest_claims(folder, tmp_path, way):
    """However many rows it claims, a shard's own footer is asked before memory is."""
    path = sorted((folder / "all_layers").iterdir())[0]
    with changed_manifest(folder) as manifest:
        entry = manifest["files"][path.relative_to(folder).as_posix()]
        entry["rows"], entry["row_groups"] = 2**50, [2**49, 2**49]
    says = rf"{re.escape(str(path))} has \d+ rows, and the dataset's manifest says {2**50}"
    with pytest.raises(ActivationsError, match=says):
        read_all(folder, way, tmp_path / "cache")
    for options in ({"shuffle": True}, {"where": {"kind": "image"}}, {"drop_last": True}):
        with pytest.raises(ActivationsError, match=says):
            next(iter(activation_batches(open_layer(folder, 4), 2**20, **options)))


def test_what_is_as_expected(tmp_path):
    url, footer = footer_of(tmp_path, 10, 4)
    check_footer(url, footer, Expected(8, "float16", {url: 10}))
    check_footer(url, footer, Expected(8, "float16", {url: 10}, {url: (4, 4, 2)}))
    check_footer(url, footer, NOTHING_EXPECTED)


@settings(max_examples=200)
@given(st.data())
def test_damaged_footers(tmp_path_factory, data):
    """Some bytes of a footer changed: the rows as they were, or one sentence with the name."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    path, _ = footer_of(folder, 10, 4)
    content = bytearray(Path(path).read_bytes())
    size = int.from_bytes(content[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = len(content) - 1 - data.draw(st.integers(0, size + 7))
        content[at] ^= data.draw(st.integers(1, 255))
    Path(path).write_bytes(content)
    stream = LayerStream(
        urls=(path,), wanted=WantedLayer(0, 1, 0), expected=Expected(8, "float16", {path: 10})
    )
    try:
        batches = list(activation_batches(stream, 3))
    except ActivationsError as error:
        assert path in str(error)
        return
    assert torch.cat([batch["sample"] for batch in batches]).tolist() == list(range(10))
    x = torch.cat([batch["x"] for batch in batches])
    assert torch.equal(x, torch.arange(80).half().view(10, 8))
    targets = torch.cat([batch["targets"] for batch in batches])
    assert torch.equal(targets, -x[:, None])
