"""Queries and pictures out of a dataset: the store of the same query file and folder."""

import hashlib
import json
import shutil

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from loopback_hub import DEFAULT_TOKEN
from safetensors.torch import load_file

from llava_amber_activations import ActivationsError


@pytest.fixture(scope="module")
def hf_folder(image_dir, query_file, tmp_path_factory):
    """A dataset folder with an image, a question and an id column."""
    entries = json.loads(query_file.read_text())
    rows = datasets.Dataset.from_dict(
        {
            "picture": [str(image_dir / entry["image"]) for entry in entries],
            "question": [entry["query"] for entry in entries],
            "id": [entry["id"] for entry in entries],
        }
    ).cast_column("picture", datasets.Image())
    folder = tmp_path_factory.mktemp("hf") / "vqa"
    (folder / "data").mkdir(parents=True)
    embedded = rows.map(lambda row: row)  # reads the files into the table
    embedded.to_parquet(str(folder / "data" / "validation-00000-of-00001.parquet"))
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_vectors_as_from_files(make_store, last_store, hf_folder, tmp_path, num_workers):
    store = make_store(
        tmp_path / "store",
        dataset=f"hf:{hf_folder}",
        image_dir=None,
        image_column="picture",
        query_column="question",
        num_workers=num_workers,
    )
    for path in sorted((last_store / "chunks").iterdir()):
        expected, found = load_file(path), load_file(store / "chunks" / path.name)
        assert expected.keys() == found.keys()
        for name in expected:
            assert expected[name].equal(found[name]), name
    lines = [json.loads(line) for line in (store / "samples.jsonl").read_text().splitlines()]
    ours = [json.loads(line) for line in (last_store / "samples.jsonl").read_text().splitlines()]
    for line, own in zip(lines, ours, strict=True):
        assert [line[k] for k in ("id", "query", "image_sha256")] == [
            own[k] for k in ("id", "query", "image_sha256")
        ]
        assert line["image"].endswith(f"vqa/validation/{line['sample']}")
    recipe = json.loads((store / "capture.json").read_text())
    assert recipe["benchmark"] == f"hf:{hf_folder}"
    (path,) = (hf_folder / "data").iterdir()
    line = f"data/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
    assert recipe["dataset_revision"] == hashlib.sha256(line.encode()).hexdigest()


def test_what_is_missing_is_said(make_store, hf_folder, query_file, tmp_path):
    def refused(match, **options):
        with pytest.raises(ActivationsError, match=match):
            make_store(tmp_path / "store", image_dir=None, **options)
        assert not (tmp_path / "store").exists()

    refused(r"no column 'image'.*--image-column", dataset=f"hf:{hf_folder}")
    columns = {"image_column": "question", "query_column": "id"}
    refused("does not hold pictures", dataset=f"hf:{hf_folder}", **columns)
    refused("cannot open the dataset", dataset=f"hf:{tmp_path / 'absent'}")
    refused("needs --image-dir", dataset=query_file)


def test_a_damaged_file_is_said(make_store, hf_folder, tmp_path):
    """Pages that are not what the footer says: what datasets was doing, and what is wrong."""
    folder = save_rows(tmp_path / "damaged", hf_folder, question=["a" * 3000, "b", "c"])
    path = folder / "train.parquet"
    footer = pq.ParquetFile(path).metadata.row_group(0)
    content = bytearray(path.read_bytes())
    for number in range(footer.num_columns):
        column = footer.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    options = {"image_dir": None, "image_column": "picture", "query_column": "question"}
    with pytest.raises(ActivationsError, match=r"cannot open the dataset .*damaged: .*generating"):
        make_store(tmp_path / "store", dataset=f"hf:{folder}", **options)
    assert not (tmp_path / "store").exists()


def save_rows(folder, hf_folder, **columns):
    """Save a dataset of the first three pictures and other columns."""
    (path,) = (hf_folder / "data").iterdir()
    rows = datasets.Dataset.from_parquet(str(path)).select(range(3)).select_columns(["picture"])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    folder.mkdir()
    rows.to_parquet(str(folder / "train.parquet"))
    return folder


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"question": ["a", None, "c"]}, r"'question' of row 1 of .* is empty"),
        ({"question": [1, 2, 3]}, r"'question' of .* does not hold texts.*--query-column"),
        ({"question": [["a"], ["b"], ["c"]]}, r"does not hold texts"),
        ({"question": ["a", "b", "c"], "id": [1, 2**31, 3]}, r"'id' of row 1 .* no 32-bit integer"),
        ({"question": ["a", "b", "c"], "id": [1, 2, None]}, r"'id' of row 2 of .* is empty"),
    ],
)
def test_odd_columns(make_store, hf_folder, tmp_path, columns, said):
    """One sentence that names column and row; before, None was asked as 'None'."""
    folder = save_rows(tmp_path / "rows", hf_folder, **columns)
    with pytest.raises(ActivationsError, match=said):
        make_store(
            tmp_path / "store",
            **{"dataset": f"hf:{folder}", "image_dir": None, "image_column": "picture"},
            query_column="question",
        )
    assert not (tmp_path / "store").exists()


def test_a_changed_folder_is_refused(make_store, hf_folder, tmp_path):
    """The pictures count, not the queries alone."""
    folder = tmp_path / "vqa"
    shutil.copytree(hf_folder, folder)
    options = {"dataset": f"hf:{folder}", "image_dir": None}
    options |= {"image_column": "picture", "query_column": "question"}
    store = make_store(tmp_path / "store", **options)
    (path,) = (folder / "data").iterdir()
    table = pq.read_table(path)
    turned = table["picture"].take([7, 0, 1, 2, 3, 4, 5, 6])
    pq.write_table(table.set_column(table.column_names.index("picture"), "picture", turned), path)
    with pytest.raises(ActivationsError, match="dataset_revision"):
        make_store(store, **options)


# huggingface_hub's own call, when it uploads.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_commit_of_a_dataset_of_the_hub(hub, make_store, hf_folder, tmp_path):
    """What was captured is what the recipe names, also when the branch has moved on."""
    api = HfApi(token=DEFAULT_TOKEN)
    api.create_repo("someone/vqa", repo_type="dataset")
    first = api.upload_folder(repo_id="someone/vqa", repo_type="dataset", folder_path=hf_folder)
    options = {"dataset": "hf:someone/vqa", "image_dir": None}
    options |= {"image_column": "picture", "query_column": "question"}
    store = make_store(tmp_path / "store", **options)
    recipe = json.loads((store / "capture.json").read_text())
    assert recipe["dataset_revision"] == first.oid
    api.upload_file(
        path_or_fileobj=b"# Another card",
        path_in_repo="README.md",
        repo_id="someone/vqa",
        repo_type="dataset",
    )
    with pytest.raises(ActivationsError, match=rf"dataset_revision \('{first.oid}', not"):
        make_store(store, **options)
