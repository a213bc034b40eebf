"""Queries and pictures out of a dataset: the store of the same query file and folder."""

import json

import datasets
import pytest
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
