"""Config `samples`: a row a sample, as the store has it, read by whatever reads Parquet."""

import hashlib
import json
import shutil

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from manifests import changed_manifest

from builder.build import build
from builder.export import export
from builder.import_pt import import_pt
from builder.info import describe
from builder.samples.table import columns_of_records
from builder.verify import verify
from llava_amber_activations import Activations
from llava_amber_activations.store.samples import SampleRecord, Tokens

FILE = "samples/train-00000-of-00001.parquet"
COLUMNS = [
    *("sample", "id", "image", "query", "prompt", "response"),
    *("n_rows", "image_sha256", "error", "tokens"),
]


@pytest.fixture(scope="module")
def lines(small_store):
    """What the store's samples.jsonl says, sample 2 skipped."""
    text = (small_store / "samples.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def expected_of(lines):
    return [{name: line.get(name) for name in COLUMNS} for line in lines]


def test_every_sample_is_a_row(small_dataset, lines):
    """In order, the skipped one too, with why; null where nobody knows."""
    table = pq.ParquetFile(small_dataset / FILE).read()
    assert table.column_names == COLUMNS
    assert table.to_pylist() == expected_of(lines)
    assert [(line["n_rows"], line.get("error")) for line in lines][2] == (
        0,
        "the picture cannot be read",
    )
    types = dict.fromkeys(COLUMNS, pa.string())
    types |= dict.fromkeys(("sample", "id", "n_rows"), pa.int32())
    types["tokens"] = pa.list_(pa.field("element", pa.string()))
    assert {field.name: field.type for field in table.schema} == types


def _by_duckdb(path):
    return duckdb.sql(f"SELECT * FROM '{path}' ORDER BY sample").to_arrow_table().to_pylist()


def _by_pandas(path):
    frame = pd.read_parquet(path).astype(object)
    return frame.where(frame.notna(), None).to_dict("records")


def _by_polars(path):
    return pl.read_parquet(path).to_dicts()


def _by_datasets(path):
    return list(datasets.load_dataset("parquet", data_files=str(path), split="train"))


@pytest.mark.parametrize("read", [_by_duckdb, _by_pandas, _by_polars, _by_datasets])
def test_others_read_the_same_rows(small_dataset, lines, read):
    assert read(small_dataset / FILE) == expected_of(lines)


def test_encodings_that_every_reader_knows(small_dataset):
    """No BYTE_STREAM_SPLIT; minima and maxima, by which a reader leaves out row groups."""
    group = pq.ParquetFile(small_dataset / FILE).metadata.row_group(0)
    for column in (group.column(n) for n in range(group.num_columns)):
        assert set(column.encodings) <= {"PLAIN", "RLE", "RLE_DICTIONARY"}
        assert column.compression == "ZSTD"
        assert column.is_stats_set or column.path_in_schema == "tokens.list.element"


def test_tokens_prompt_and_response_are_the_records():
    """Row groups of a thousand samples, whatever the samples hold."""
    records = [
        SampleRecord(
            sample=sample,
            id=-sample,
            image="a.jpg",
            query="Why?",
            image_sha256=None,
            n_rows=3,
            response="Because." if sample % 2 else None,
            prompt=f"USER: <image>\nWhy? {sample}",
            tokens=Tokens.of(("<image>",) * 3 + ("", "é")),
        )
        for sample in range(2500)
    ]
    joined = pa.table({"correct": [sample % 3 == 0 for sample in range(2500)]})
    groups = list(columns_of_records(records, joined, None))
    assert [len(group[0]) for group in groups] == [1000, 1000, 500]
    names = [*COLUMNS, "correct"]
    rows = [
        row
        for group in groups
        for row in pa.table(dict(zip(names, group, strict=True))).to_pylist()
    ]
    for record, row in zip(records, rows, strict=True):
        said = {name: getattr(record, name) for name in COLUMNS}
        assert row == {**said, "tokens": list(record.tokens), "correct": record.sample % 3 == 0}


@pytest.mark.parametrize(
    ("configs", "splits"),
    [(None, ["L0", "L1", "L2"]), (["default"], ["L0", "L1", "L2"]), (["all_layers"], ["train"])],
)
def test_what_load_dataset_opens_stays(small_store, tmp_path, configs, splits):
    """The vectors, of `default` or else of `all_layers`; `samples` by its name."""
    build(small_store, tmp_path / "dataset", configs=configs)
    opened = datasets.load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert list(opened) == splits
    assert opened[splits[0]].num_rows == 9 and "position" in opened[splits[0]].column_names
    samples = datasets.load_dataset(
        str(tmp_path / "dataset"), "samples", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert samples["n_rows"][:] == [3, 1, 0, 3, 2]
    card = DatasetCard.load(tmp_path / "dataset" / "README.md")
    assert card.data.to_dict()["configs"][0]["config_name"] == "samples"


def test_activations_samples(small_dataset, lines, tmp_path):
    """The table; of a folder without it, the samples that have rows, by those rows."""
    assert Activations(small_dataset).samples.to_pylist() == expected_of(lines)
    shutil.copytree(small_dataset, tmp_path / "dataset")
    (tmp_path / "dataset" / FILE).unlink()
    with changed_manifest(tmp_path / "dataset") as manifest:
        del manifest["files"][FILE]
    names = ("sample", "id", "image", "n_rows")
    rows = [{name: line[name] for name in names} for line in lines if line["n_rows"]]
    assert Activations(tmp_path / "dataset").samples.to_pylist() == rows
    assert len(rows) == 4


@pytest.mark.parametrize("layout", ["layers", "samples"])
def test_an_import_knows_numbers_and_rows(write_layers, write_samples_layout, tmp_path, layout):
    """And nothing else; numbers that the files leave out are left out."""
    if layout == "layers":
        write_layers(tmp_path / "pt")
        expected = [(0, 3), (1, 3), (2, 1), (3, 1), (4, 1)]
    else:
        write_samples_layout(tmp_path / "pt", lengths=(1, 2, 4))
        (tmp_path / "pt" / "sample_0001.pt").unlink()
        expected = [(0, 1), (2, 4)]
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    unknown = dict.fromkeys(COLUMNS)
    table = pq.ParquetFile(tmp_path / "dataset" / FILE).read()
    assert table.to_pylist() == [
        {**unknown, "sample": sample, "n_rows": n_rows} for sample, n_rows in expected
    ]
    assert "samples are those of the rows" in verify(tmp_path / "dataset").checks
    opened = datasets.load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert list(opened) == ["L0", "L1", "L2"]


def test_an_export_is_of_the_vectors_alone(small_dataset, tmp_path):
    """What else is known of the samples makes it no other one."""
    shutil.copytree(small_dataset, tmp_path / "dataset")
    first = export(tmp_path / "dataset", tmp_path / "pt", layout="layers", batch_size=2)
    path = tmp_path / "dataset" / FILE
    table = pq.ParquetFile(path).read()
    pq.write_table(table.append_column("mine", [list(range(5))]), path)
    with changed_manifest(tmp_path / "dataset") as manifest:
        entry = manifest["files"][FILE]
        entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["bytes"] = path.stat().st_size
    again = export(tmp_path / "dataset", tmp_path / "pt", layout="layers", batch_size=2)
    assert (again.n_files, again.n_written, first.n_written) == (first.n_files, 0, first.n_files)


def test_info_names_it(small_dataset):
    described = describe(small_dataset)
    size = (small_dataset / FILE).stat().st_size
    assert described.to_json()["configs"]["samples"] == {
        "train": {"files": 1, "rows": 5, "bytes": size}
    }
    assert f"train: 1 files, {size} bytes" in dict(described.table())["config samples"]
    assert described.to_json()["rows"] == 9
