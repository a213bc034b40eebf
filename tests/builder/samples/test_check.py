"""verify: config `samples` is of the samples that the rows are of."""

import hashlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifests import changed_manifest

from builder.verify import verify
from llava_amber_activations import Activations, ActivationsError

FILE = "samples/train-00000-of-00001.parquet"


@pytest.fixture
def rewrite(small_dataset, tmp_path):
    """Function that changes the rows of a copy's `samples`, and makes the manifest agree."""
    folder = tmp_path / "dataset"
    shutil.copytree(small_dataset, folder)

    def change(edit):
        path = folder / FILE
        pq.write_table(edit(pq.ParquetFile(path).read()), path)
        content = path.read_bytes()
        with changed_manifest(folder) as manifest:
            entry = manifest["files"][FILE]
            entry["sha256"], entry["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
            entry["rows"] = pq.read_metadata(path).num_rows
            if "row_groups" in entry:
                entry["row_groups"] = [entry["rows"]]
        return folder

    return change


def with_value(column, row, value):
    def edit(table):
        at = table.schema.get_field_index(column)
        values = table[column].to_pylist()
        values[row] = value
        field = table.schema.field(at)
        return table.set_column(at, field, pa.array(values, field.type))

    return edit


def without(row):
    return lambda table: pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def not_utf8(table):
    at = table.schema.get_field_index("query")
    broken = pa.array([b"\xff"] * len(table), pa.binary()).view(pa.string())
    return table.set_column(at, table.schema.field(at), broken)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (with_value("n_rows", 3, 2), "sample 3 .* n_rows 2, and its rows have n_rows 3"),
        (with_value("n_rows", 2, 1), "sample 2 .* n_rows 1, and its rows have n_rows 0"),
        (with_value("n_rows", 0, 0), "sample 0 .* n_rows 0, and its rows have n_rows 3"),
        (with_value("id", 4, 7), "sample 4 .* id 7, and its rows have id 105"),
        (with_value("image", 0, "b.jpg"), "sample 0 .* image 'b.jpg', .* image 'AMBER_1.jpg'"),
        (with_value("sample", 2, 9), "has not a row for each of the 5 samples, in their order"),
        (without(2), "has not a row for each of the 5 samples"),
        (without(4), "has not a row for each of the 5 samples"),
        (lambda table: table.drop_columns("error"), "error of .* is missing, .* to be string"),
        (not_utf8, "samples/train.* is damaged"),
    ],
)
def test_what_is_said_of_samples_is_compared(rewrite, edit, match):
    with pytest.raises(ActivationsError, match=match):
        verify(rewrite(edit))


def test_other_columns_may_be_joined(rewrite):
    folder = rewrite(lambda table: table.append_column("mine", [list(range(5))]))
    assert verify(folder).n_rows == 9
    assert Activations(folder).samples["mine"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_column_of_another_type_is_refused(rewrite):
    def as_int64(table):
        at = table.schema.get_field_index("n_rows")
        return table.set_column(at, "n_rows", table["n_rows"].cast(pa.int64()))

    folder = rewrite(as_int64)
    with pytest.raises(ActivationsError, match=r"n_rows of .* is int64, and it is to be int32"):
        verify(folder)
    with pytest.raises(ActivationsError, match=r"n_rows of .* is int64"):
        _ = Activations(folder).samples
