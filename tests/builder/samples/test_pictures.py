"""`build --embed-pictures`: those that were captured, checked, as they are or made smaller."""

import hashlib
import io
import json
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builder.build import build
from builder.samples.asked import SamplesAsked
from builder.samples.pictures import Pictures
from builder.samples.table import columns_of_records
from builder.samples.write import write_samples
from builder.verify import verify
from llava_amber_activations import Activations, ActivationsError
from llava_amber_activations.store.samples import SampleRecord, read_samples

FILE = "samples/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def store(make_small_store, image_dir, tmp_path_factory):
    """Small store of five of the photographs, the third skipped."""
    return make_small_store(tmp_path_factory.mktemp("small") / "store", image_dir=image_dir)


@pytest.fixture
def pictures_of(store, image_dir, tmp_path):
    """Function that builds `store` with its pictures; returns the folder."""

    def make(name="dataset", folder=image_dir, size=None):
        asked = SamplesAsked(image_dir=folder, picture_size=size)
        build(store, tmp_path / name, configs=["all_layers"], samples=asked)
        return tmp_path / name

    return make


def test_the_files_own_bytes(pictures_of, store, image_dir, tmp_path):
    """Byte for byte; an `Image` to `datasets`; said on the card; not in `Activations.samples`."""
    folder = pictures_of()
    records = read_samples(store)
    values = pq.ParquetFile(folder / FILE).read()["picture"].to_pylist()
    assert values == [
        {"bytes": (image_dir / record.image).read_bytes(), "path": record.image}
        if record.error is None
        else None
        for record in records
    ]
    assert values.count(None) == 1
    rows = datasets.load_dataset(
        str(folder), "samples", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.features["picture"] == datasets.Image()
    assert rows[3]["picture"].size == Image.open(image_dir / records[3].image).size
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "The pictures themselves are in this repository" in card
    assert "No picture is in this repository" not in card
    assert "| `picture` | image | `samples` | the picture's file |" in card
    assert "picture" not in Activations(folder).samples.column_names
    verify(folder)
    again = pictures_of("again")
    assert (folder / FILE).read_bytes() == (again / FILE).read_bytes()


def test_smaller_ones(pictures_of, image_dir):
    """The longest side as asked, the shape kept, no upscaling; the picture still the picture."""
    folder = pictures_of(size=64)
    values = pq.ParquetFile(folder / FILE).read()["picture"].to_pylist()
    assert [value is None for value in values] == [False, False, True, False, False]
    for value in filter(None, values):
        small = Image.open(io.BytesIO(value["bytes"]))
        large = Image.open(image_dir / value["path"]).convert("RGB")
        assert small.format == "JPEG" and max(small.size) == 64
        ratio = large.size[0] / large.size[1]
        assert abs(small.size[0] - small.size[1] * ratio) <= max(1, ratio)
        expected = np.asarray(large.resize(small.size, Image.Resampling.LANCZOS), float)
        assert np.abs(np.asarray(small, float) - expected).mean() < 8
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "its longest side 64 pixels or less" in card
    sizes = {Image.open(path).size for path in image_dir.iterdir()}
    larger = pictures_of("larger", size=100_000)
    values = pq.ParquetFile(larger / FILE).read()["picture"].to_pylist()
    assert {Image.open(io.BytesIO(value["bytes"])).size for value in filter(None, values)} <= sizes


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "AMBER_4.jpg is not the picture"),
        (lambda path: path.unlink(), "AMBER_4.jpg is missing: give --image-dir the folder"),
        (lambda path: shutil.rmtree(path.parent), "the image folder .* does not exist"),
    ],
)
def test_another_picture_is_refused(pictures_of, image_dir, tmp_path, damage, match):
    """Before a shard is written, and nothing is left."""
    shutil.copytree(image_dir, tmp_path / "images")
    damage(tmp_path / "images" / "AMBER_4.jpg")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ActivationsError, match=match):
        pictures_of(folder=tmp_path / "images")
    assert sorted(tmp_path.rglob("*")) == before


def test_skipped_and_shared_pictures(tmp_path, monkeypatch):
    """A skipped sample has none; one that samples share lies in a row group once."""
    monkeypatch.setattr("builder.samples.table._MOST_PICTURE_BYTES", 500_000)
    rng = np.random.default_rng(0)
    digests = {}
    for name, size in (("small", 3_000), ("large", 200_000)):
        (tmp_path / name).write_bytes(content := rng.bytes(size))
        digests[name] = hashlib.sha256(content).hexdigest()
    names = ["small"] * 120 + ["large"] * 4
    records = [
        SampleRecord(n, n, name, "Why?", digests[name], int(n != 1), "gone" if n == 1 else None)
        for n, name in enumerate(names)
    ]
    groups = list(columns_of_records(records, pa.table({}), Pictures(tmp_path, None)))
    # A hundred rows at most, and so many bytes of pictures.
    assert [len(group[0]) for group in groups] == [100, 22, 2]
    assert groups[0][-1].is_valid().to_pylist()[:3] == [True, False, True]
    asked = SamplesAsked(image_dir=tmp_path)
    (entry,) = write_samples(tmp_path / "dataset", records, pa.table({}), asked, 4).values()
    assert entry.rows == 124 and entry.bytes < 2 * 3_000 + 2 * 200_000 + 20_000


def test_other_options_are_another_build(store, image_dir, pictures_of):
    """The manifest names them: the same again is built already, another is refused."""
    folder = pictures_of(size=64)
    built_from = json.loads((folder / "manifest.json").read_text())["built_from"]
    assert (built_from["pictures"], built_from["picture_size"]) == (True, 64)
    before = (folder / FILE).stat().st_mtime_ns
    pictures_of(size=64)
    assert (folder / FILE).stat().st_mtime_ns == before
    for other in (SamplesAsked(), SamplesAsked(image_dir=image_dir, picture_size=63)):
        with pytest.raises(ActivationsError, match="already holds something"):
            build(store, folder, configs=["all_layers"], samples=other)
