"""A model that cuts tiles, from its capture to the figures: LLaVA-NeXT on two pictures."""

import json
from itertools import product

import numpy as np
import pytest
from datasets import load_dataset
from picture_models import unmixed
from read_by_gradient import place_picture
from safetensors.torch import load_file
from tiled_models import llava_next

from builder.build import build
from builder.drawn.patches import patch_maps
from builder.drawn.rows import draw_rows
from capture import LiveActivations
from llava_amber_activations.sources.source import open_source

SIDE = 4
WHOLE = [(0, row, column) for row, column in product(range(SIDE), repeat=2)]
NEWLINE = (-1, -1, -1)


def grid(n_rows, n_columns, tile_of):
    """Return a grid of tiles by hand: row by row, a newline after each."""
    return [
        place
        for row in range(n_rows)
        for place in [
            *((tile_of(row, column), row, column) for column in range(n_columns)),
            NEWLINE,
        ]
    ]


# Three tiles beside each other, which it fills to the pixel; and two by two, a quarter of whose
# rows are padding: one above and one below.
WIDE, WIDE_PLACES = (144, 48), [*WHOLE, *grid(4, 12, lambda row, column: 1 + column // 4)]
FLAT = (64, 48)
FLAT_PLACES = [
    *WHOLE,
    *grid(6, 8, lambda row, column: 1 + 2 * ((row + 1) // 4) + column // 4),
]
SAMPLES = [("wide", "Why?"), ("flat", "Who took it?"), ("wide", "Is it red?")]
PLACES = {"wide": WIDE_PLACES, "flat": FLAT_PLACES}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of the model, the pictures and the queries."""
    folder = tmp_path_factory.mktemp("tiles")
    model, processor = llava_next()
    unmixed(model).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for name, size in (("wide", WIDE), ("flat", FLAT)):
        place_picture(*size).save(folder / "images" / f"{name}.png")
    entries = [
        {"id": n, "image": f"{name}.png", "query": query} for n, (name, query) in enumerate(SAMPLES)
    ]
    (folder / "queries.json").write_text(json.dumps(entries))
    return folder


def captured(made, make_store, out, **options):
    return make_store(
        out,
        model=str(made / "model"),
        dataset=made / "queries.json",
        image_dir=made / "images",
        positions="image",
        n_targets=1,
        **options,
    )


@pytest.mark.parametrize("reuse_prefix", [False, True])
def test_places_in_the_store(made, make_store, tmp_path, reuse_prefix):
    """Whether samples of one picture share its prefix or not, by hand."""
    store = captured(made, make_store, tmp_path / "store", reuse_prefix=reuse_prefix)
    assert json.loads((store / "capture.json").read_text())["extra_columns"] == ["tile"]
    (path,) = sorted((store / "chunks").iterdir())
    chunk = load_file(path)
    columns = [chunk[name].tolist() for name in ("sample", "tile", "patch_row", "patch_col")]
    found = list(zip(*columns, strict=True))
    expected = [(n, *place) for n, (name, _) in enumerate(SAMPLES) for place in PLACES[name]]
    assert found == expected


def test_places_of_live_rows(made):
    """The same, straight from the model."""
    live = LiveActivations(
        made / "model", made / "queries.json", image_dir=made / "images", positions="image"
    )
    names = ("sample", "tile", "patch_row", "patch_col")
    found = [
        row
        for batch in live.batches(layer=0, n_targets=1, first_target=0, batch_size=32)
        for row in zip(*(batch[name].tolist() for name in names), strict=True)
    ]
    assert found == [(n, *place) for n, (name, _) in enumerate(SAMPLES) for place in PLACES[name]]


def test_figures_are_of_the_whole_pictures(made, make_store, tmp_path):
    """The dataset has all places; a map of patches does not mix the whole with the tiles."""
    store = captured(made, make_store, tmp_path / "store")
    build(store, tmp_path / "dataset", configs=["all_layers"])
    rows = load_dataset(str(tmp_path / "dataset"), "all_layers", split="train")
    expected = [place for name, _ in SAMPLES for place in PLACES[name]]
    assert list(zip(rows["tile"], rows["patch_row"], rows["patch_col"], strict=True)) == expected
    (found,) = patch_maps(draw_rows(open_source(tmp_path / "dataset")))
    x = np.array(rows["x_00"])
    for row, column in product(range(SIDE), repeat=2):
        own = [n for n, place in enumerate(expected) if place == (0, row, column)]
        norm = np.linalg.norm(x[own], axis=1).mean()
        assert found.norms[row][column] == pytest.approx(norm, rel=1e-5)
    assert np.shape(found.norms) == (SIDE, SIDE) and found.n_samples == len(SAMPLES)
