"""What the card says of a planted dataset, in figures and in words."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from matplotlib.figure import Figure
from PIL import Image
from random_store import read_vectors

from builder.build import build
from builder.drawn.card_look import look_at
from builder.drawn.card_words import code, example_lines, figure_words
from builder.folder.card import card_text
from builder.folder.figures import logarithmic
from llava_amber_activations import load_statistics
from llava_amber_activations.sources.source import open_source

FIGURES = ("rms", "energy", "kinds", "sinks", "patches")


@pytest.fixture(scope="module")
def look(planted):
    return look_at(open_source(planted))


@pytest.fixture(scope="module")
def text(planted):
    return (planted / "README.md").read_text(encoding="utf-8")


def test_the_card_shows_every_figure_with_its_words(planted, text):
    """Each is a picture that is there, in the manifest, with an alternative text of numbers."""
    shown = dict(re.findall(r"!\[([^\]]*)\]\((figures/\w+\.png)\)", text))
    assert sorted(shown.values()) == sorted(f"figures/{name}.png" for name in FIGURES)
    manifest = open_source(planted).manifest
    for alt, path in shown.items():
        with Image.open(planted / path) as picture:
            assert picture.width >= 900, path
        assert path in manifest.files
        assert len(re.findall(r"\d", alt)) >= 2, alt


def test_kinds_are_counted(planted, text, look):
    assert "| text | 240 | 50.0 % |" in text
    assert "| image | 192 | 40.0 % |" in text
    assert "| generated | 48 | 10.0 % |" in text
    statistics = load_statistics(planted)
    for code_, line in enumerate(look.kinds):
        assert line.x == pytest.approx(statistics.x_mean_norm_by_kind[:, code_].tolist())
        usual = statistics.robust.mlp_out_mean_norm_by_kind[:, code_]
        assert line.usual_mlp_out == pytest.approx(usual.tolist())


def test_the_jump_is_explained(text, look):
    """Layer 2's dimension 5 at position 0, over all rows."""
    jump = look.jump
    assert (jump.before, jump.layer, jump.dimension) == (1, 2, 5) and jump.is_jump
    assert jump.positions[0][0] == 0 and jump.positions[0][1] > 0.999
    assert re.search(
        r"It jumps from [\d.]+ % at layer 1 to over 99\.9 % at layer 2: that is dimension 5, of "
        r"whose energy position 0 holds over 99\.9 % \(all 480 rows\)\.",
        text,
    )
    assert "At layer 2, 12 rows are over ten times as large as the median one" in text
    assert "those at position 0 (`<s>`) have a mean norm of 3,000" in text


def test_where_nothing_jumps_it_is_said(small_dataset):
    source = open_source(small_dataset)
    words = figure_words(look_at(source), source.manifest.recipe.hidden_size)
    assert "It does not jump between two layers" in words["figures/energy.png"][1]


def test_two_rows_are_read_as_text(planted_store, text, look):
    """A patch in the middle of a picture, and the last row of its sample."""
    patch, last = look.examples
    assert (patch.kind, patch.position, patch.patch) == ("image", 10, (2, 0))
    assert (last.kind, last.position, last.patch) == ("generated", 39, None)
    assert "| sample | 0 (id 1) | 0 (id 1) |" in text
    assert "| picture | `AMBER_1.jpg` | `AMBER_1.jpg` |" in text
    assert "| query | Describe picture 0. | Describe picture 0. |" in text
    assert "| ` word35 word36 word37 word38` **` word39`** |" in text
    assert "| patch | row 2, column 0 |  |" in text
    norm = np.linalg.norm(read_vectors(planted_store)["x_03"][10])
    assert f"| norm of `x` at layer 3 | {norm:.3g} |" in text


def test_no_code_scrolls_sideways(planted, last_dataset):
    """With every config and with one: as wide as the Hub's page shows, and no wider."""
    for folder in (planted, last_dataset):
        text = (folder / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:python|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert blocks
        for line in "".join(blocks).splitlines():
            assert len(line) <= 80, line


def test_one_row_a_sample_and_no_patches(last_dataset):
    """Its figures say nothing of positions; nor is there a map, or a figure of one kind."""
    card = DatasetCard.load(last_dataset / "README.md")
    assert "figures/sinks.png" in card.text
    assert "figures/patches.png" not in card.text and "figures/kinds.png" not in card.text
    assert not (last_dataset / "figures" / "patches.png").exists()
    assert "each sample has one" in card.text


def test_equal_data_gives_equal_figures(planted_store, planted, tmp_path):
    """Bit for bit, the card too, in another place."""
    build(planted_store, tmp_path / "again", configs=("all_layers",), max_shard_size="100kB")
    for path in (*(f"figures/{name}.png" for name in FIGURES), "README.md"):
        assert (tmp_path / "again" / path).read_bytes() == (planted / path).read_bytes(), path


def test_a_folder_of_an_earlier_release_shows_what_it_has(planted, tmp_path):
    """Figures that are not in the manifest are not spoken of."""
    shutil.copytree(planted, tmp_path / "dataset")
    manifest = open_source(planted).manifest
    new = ("figures/kinds.png", "figures/sinks.png", "figures/patches.png")
    files = {path: entry for path, entry in manifest.files.items() if path not in new}
    text = card_text(tmp_path / "dataset", replace(manifest, files=files), "lab/name")
    assert "figures/rms.png" in text and not any(path in text for path in new)


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" a", "` a`"), ("a|b`c\nd", "`a|b'c↵d`"), ("\n", "`↵`"), ("  ", "`␣`"), ("", "")],
)
def test_a_token_as_code(text, shown):
    assert code(text) == shown


def test_text_does_not_break_the_table(look):
    """A bar ends a cell, even of code; a query's marks are no marks."""
    row = replace(look.examples[0], token="<|im|>", before=("a|",), after=(), query="_a_ | b\nc")
    lines = dict(example_lines([row]))
    assert lines["token"] == ["`a\\|` **`<\\|im\\|>`**"]
    assert lines["query"] == ["\\_a\\_ \\| b c"]


def test_ticks_are_plain_numbers():
    """Of a narrow range too, which has no power of ten in it."""
    for limits, expected in (((0.05, 200), {"0.1", "1", "10", "100"}), ((3, 4), {"3", "4"})):
        axes = Figure().add_subplot()
        axes.set_ylim(*limits)
        logarithmic(axes)
        axes.set_ylim(*limits)
        axes.figure.draw_without_rendering()
        labels = axes.get_yticklabels() + axes.get_yticklabels(minor=True)
        assert expected <= {label.get_text() for label in labels} - {""}
