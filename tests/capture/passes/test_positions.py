"""Where each row is: its kind, and a patch's place on the picture."""

import json

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file

from builder.build import build
from capture.model.tiny_model import make_tiny_llava
from capture.passes.positions import PositionChoice, select_rows

IMAGE_TOKEN = 4


def test_kinds_and_patches(all_store, reference, image_dir, query_file):
    """Every row of every sample: text or image, and the image tokens 2 × 2 in reading order."""
    rows = {}
    for path in sorted((all_store / "chunks").iterdir()):
        chunk = load_file(path)
        names = ("kind", "patch_row", "patch_col")
        places = zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True)
        values = zip(*(chunk[name].tolist() for name in names), strict=True)
        rows |= dict(zip(places, values, strict=True))
    for sample, entry in enumerate(json.loads(query_file.read_text())):
        ids = reference.run(image_dir / entry["image"], entry["query"]).input_ids.tolist()
        first = ids.index(IMAGE_TOKEN)
        for position, token in enumerate(ids):
            expected = (0, -1, -1)
            if token == IMAGE_TOKEN:
                expected = (1, (position - first) // 2, (position - first) % 2)
            assert rows[sample, position] == expected


def test_a_patch_is_where_its_pixels_are(tmp_path, make_store):
    """A picture with one bright patch changes x of layer 0 at that patch's row alone.

    x before the first attention (resid_pre of layer 0) is the projected patch itself.
    """
    model = make_tiny_llava(tmp_path / "model", image_size=56)  # 4 × 4 patches of 14 pixels
    images = tmp_path / "images"
    images.mkdir()
    dark = Image.new("RGB", (56, 56), "black")
    dark.save(images / "dark.png")
    spot = dark.copy()
    spot.paste("white", (28, 14, 42, 28))  # column 2, row 1
    spot.save(images / "spot.png")
    queries = tmp_path / "queries.json"
    entries = [
        {"id": n, "image": f"{name}.png", "query": "?"} for n, name in enumerate(("dark", "spot"))
    ]
    queries.write_text(json.dumps(entries))
    store = make_store(
        tmp_path / "store",
        model=str(model),
        dataset=queries,
        image_dir=images,
        positions="image",
        x_site="resid_pre",
    )
    build(store, tmp_path / "dataset", configs=["all_layers"])
    rows = load_dataset(str(tmp_path / "dataset"), "all_layers", split="train")
    rows = rows.with_format("numpy")[:]
    assert set(rows["kind"]) == {"image"}
    x = rows["x_00"].reshape(2, 16, 64)
    change = np.linalg.norm(x[1] - x[0], axis=1)
    brightest = int(np.argmax(change))
    assert (rows["patch_row"][brightest], rows["patch_col"][brightest]) == (1, 2)


def test_drawn_positions(make_store, all_store, tmp_path):
    """K of each sample's rows, ascending, the same for the same seed whatever the batch."""
    full = {}
    for path in sorted((all_store / "chunks").iterdir()):
        chunk = load_file(path)
        for sample, position, x in zip(
            chunk["sample"], chunk["position"], chunk["x_09"], strict=True
        ):
            full[int(sample), int(position)] = x
    drawn = {}
    for name, options in {
        "one": {"seed": 1, "batch_size": 1, "chunk_samples": 8},
        "five": {"seed": 1, "batch_size": 5, "chunk_samples": 8},
        "other": {"seed": 2, "chunk_samples": 8},
    }.items():
        store = make_store(tmp_path / name, positions="all", sample_positions=7, **options)
        chunk = load_file(store / "chunks" / "chunk-00000.safetensors")
        drawn[name] = list(zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True))
        assert drawn[name] == sorted(set(drawn[name])) and len(drawn[name]) == 8 * 7
        for place, x in zip(drawn[name], chunk["x_09"], strict=True):
            assert (x - full[place]).norm() < 1e-4 * full[place].norm()
    assert drawn["one"] == drawn["five"] != drawn["other"]


def test_fewer_positions_than_are_drawn():
    """A sample with fewer keeps them all."""
    inputs = {
        "input_ids": torch.arange(10, 15)[None],
        "attention_mask": torch.ones(1, 5, dtype=int),
    }
    rows = select_rows(inputs, [0], PositionChoice("all", sample_positions=9), IMAGE_TOKEN)
    assert rows.columns["position"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("mode", ["all", "image", "text", "last"])
def test_the_last_token_beside_those_that_are_drawn(make_store, tmp_path, mode):
    """Kept of every sample, once; what is drawn is what was drawn without it."""
    options = {"positions": mode, "sample_positions": 2}
    both = make_store(tmp_path / "both", always="last", **options)
    drawn = rows_of(make_store(tmp_path / "drawn", **options))
    ends = rows_of(make_store(tmp_path / "ends"))
    found = rows_of(both)
    assert len(ends) == 8 and set(found) == set(drawn) | set(ends)
    assert list(found) == sorted(found)
    assert all(found[place] == x for place, x in drawn.items())
    assert json.loads((both / "capture.json").read_text())["always"] == "last"
    build(both, tmp_path / "dataset")
    table = load_dataset(str(tmp_path / "dataset"), "L9", split="L9")
    assert list(zip(table["sample"], table["position"], strict=True)) == list(found)


def rows_of(store):
    """Return layer 9's x of each row of a store, by its sample and position."""
    rows = {}
    for path in sorted((store / "chunks").iterdir()):
        chunk = load_file(path)
        places = zip(chunk["sample"].tolist(), chunk["position"].tolist(), strict=True)
        rows |= dict(zip(places, chunk["x_09"].tolist(), strict=True))
    return rows
