"""`llava-amber report`: of every kind of dataset, and what it refuses."""

import base64
import gzip
import io
import json
import re
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from planted_store import LAYER, N_SAMPLES, PLANTED, TEXTS, WIDTH, vectors

from builder.build import build
from builder.import_pt import import_pt
from builder.push import push
from builder.report.report import make_report
from builder.samples.asked import SamplesAsked
from llava_amber_activations.sources.source import open_source

ALL = 10**9


def text_of(page):
    """Return what a page says, without its tags."""
    text = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def browsed(page):
    """Return the header of the browser's data; None where there is none."""
    found = re.search(r'id="samples-data">([^<]+)<', page)
    if found is None:
        return None
    content = gzip.decompress(base64.b64decode(found[1]))
    (length,) = struct.unpack_from("<I", content)
    return json.loads(content[4 : 4 + length])


def test_the_command_writes_a_page_and_says_what_it_shows(
    cli, planted_dataset, image_dir, tmp_path
):
    out = tmp_path / "pages" / "report.html"
    done = cli("report", planted_dataset, out, "--image-dir", image_dir)
    assert done.returncode == 0, done.stderr
    n_rows = N_SAMPLES * len(TEXTS)
    assert f"All {n_rows} rows, of all layers" in done.stdout
    page = out.read_text(encoding="utf-8")
    assert str(planted_dataset.parent) not in page
    # The same command writes it again.
    assert cli("report", planted_dataset, out, "--image-dir", image_dir).returncode == 0
    assert out.read_text(encoding="utf-8") == page


def test_what_is_said_is_what_the_vectors_are(planted_report):
    said = text_of(planted_report.read_text(encoding="utf-8"))
    stored = vectors()
    x = stored[f"x_{LAYER:02d}"].astype(np.float64)
    energy = np.square(x)
    share = energy[:, PLANTED].sum() / energy.sum()
    assert f"At L{LAYER} position {PLANTED} (“<image>”, image) holds {share:.0%}".replace(
        "%", " %"
    ) in said.replace("&lt;", "<").replace("&gt;", ">")
    medians = [
        np.median(np.linalg.norm(stored[f"x_{layer:02d}"].astype(np.float64), axis=-1))
        for layer in (0, 4)
    ]
    assert f"it goes from {medians[0]:.3g} at L0 to {medians[1]:.3g} at L4" in said
    top = energy.sum(axis=(0, 1)).argmax()
    assert f"dimension {top} alone holds" in said


def test_pictures_are_cut_as_the_processor_cuts_them(planted_report, image_dir):
    """The middle square of a wide picture, as CLIP's processor takes it."""
    header = browsed(planted_report.read_text(encoding="utf-8"))
    for sample in header["samples"]:
        kind, _, content = sample["picture"].partition(",")
        assert kind == "data:image/jpeg;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(content)))
        assert shown.width == shown.height
        with Image.open(image_dir / sample["image"]) as whole:
            side = min(whole.size)
            left, top = (whole.width - side) / 2, (whole.height - side) / 2
            middle = whole.convert("RGB").resize(
                shown.size, Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
            )
        difference = np.abs(np.asarray(shown, float) - np.asarray(middle, float))
        assert difference.mean() < 4


def test_a_budget_of_bytes_draws_whole_samples(planted_dataset):
    n_bytes = 5 * 2 * WIDTH * 4 * len(TEXTS)
    made = make_report(open_source(planted_dataset), max_bytes=9 * n_bytes)
    assert "All" in made.drawn
    made = make_report(open_source(planted_dataset), max_bytes=4 * n_bytes)
    header = browsed(made.text)
    assert 1 <= len(header["samples"]) <= 4
    for sample in header["samples"]:
        assert sample["text"] == TEXTS
        assert str(sample["sample"]) in made.drawn
    n_rows = len(header["samples"]) * len(TEXTS)
    assert made.drawn.startswith(f"{n_rows} of {N_SAMPLES * len(TEXTS)} rows")


def test_pictures_of_the_dataset_itself(planted_store, image_dir, tmp_path):
    """Only those of samples that are shown; without any, the page says how to have them."""
    asked = SamplesAsked(image_dir=image_dir, picture_size=64)
    build(planted_store, tmp_path / "dataset", configs=["all_layers"], samples=asked)
    header = browsed(make_report(open_source(tmp_path / "dataset"), max_bytes=ALL).text)
    assert all(each["picture"].startswith("data:image/jpeg") for each in header["samples"])


def test_without_pictures_it_says_so(planted_dataset):
    made = make_report(open_source(planted_dataset), max_bytes=ALL)
    assert not any("picture" in each for each in browsed(made.text)["samples"])
    assert "--image-dir" in made.text


@pytest.mark.parametrize("configs", [["default"], ["default", "all_layers"]])
def test_a_dataset_without_pictures_patches_or_tokens(small_store, configs, tmp_path):
    """Rows of no known kind; with `default` alone the last layer has no `x`."""
    build(small_store, tmp_path / "dataset", configs=configs)
    made = make_report(open_source(tmp_path / "dataset"), max_bytes=ALL)
    header = browsed(made.text)
    assert header["layers"] == ([0, 1, 2] if configs == ["default"] else [0, 1, 2, 3])
    assert header["mlp_out"] == ([1, 2] if configs == ["default"] else [0, 1, 2, 3])
    assert header["samples"][0]["text"] == ["token 0", "token 1", "token 2"]
    assert "No row is a patch" in made.text
    assert "Where on the pictures" not in text_of(made.text)


def test_imported_files(write_layers, tmp_path):
    write_layers(tmp_path / "pt")
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    made = make_report(open_source(tmp_path / "dataset"), max_bytes=ALL)
    assert "not known" in text_of(made.text)
    assert len(browsed(made.text)["samples"]) == 5


def test_features_alone_have_nothing_to_draw(write_samples_layout, tmp_path):
    write_samples_layout(tmp_path / "pt")
    import_pt(tmp_path / "pt", tmp_path / "dataset")
    made = make_report(open_source(tmp_path / "dataset"), max_bytes=ALL)
    assert "no vectors of layers" in made.text
    assert browsed(made.text) is None


def test_from_the_hub_it_says_how_many_bytes_travelled(hub, cli, planted_dataset, tmp_path):
    push(planted_dataset, "lab/planted")
    hub.reset_counts()
    done = cli("report", "lab/planted", tmp_path / "page.html", "--max-bytes", "20kB")
    assert done.returncode == 0, done.stderr
    number, unit = re.search(r"([\d.]+) (kB|MB) travelled", done.stdout).groups()
    said = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    assert said == pytest.approx(hub.bytes_sent(), rel=0.02)


def test_pushed_with_the_dataset_and_checked_with_it(hub, cli, planted_dataset, tmp_path):
    done = cli("push", planted_dataset, "--repo-id", "lab/with-report", "--report")
    assert done.returncode == 0, done.stderr
    page = hub.read("lab/with-report", "report.html").decode()
    assert "lab/with-report" in page
    assert "](report.html)" in hub.read("lab/with-report", "README.md").decode()
    manifest = json.loads(hub.read("lab/with-report", "manifest.json"))
    assert manifest["files"]["report.html"]["bytes"] == len(page.encode())
    # Without it, the next push takes away the page of what was there before.
    assert cli("push", planted_dataset, "--repo-id", "lab/with-report").returncode == 0
    assert "report.html" not in json.loads(hub.read("lab/with-report", "manifest.json"))["files"]


def test_what_is_no_report_is_not_written_over(cli, planted_dataset, tmp_path):
    out = tmp_path / "thesis.html"
    out.write_text("<p>years of work</p>")
    done = cli("report", planted_dataset, out)
    assert done.returncode == 1
    assert "not a report" in done.stderr
    assert out.read_text() == "<p>years of work</p>"
    done = cli("report", planted_dataset, tmp_path)
    assert (done.returncode, "name a file" in done.stderr) == (1, True)


def test_another_picture_of_the_same_name_is_refused(cli, planted_dataset, image_dir, tmp_path):
    shutil.copytree(image_dir, tmp_path / "images")
    shutil.copyfile(image_dir / "AMBER_1.jpg", tmp_path / "images" / "AMBER_4.jpg")
    out = tmp_path / "page.html"
    done = cli("report", planted_dataset, out, "--image-dir", tmp_path / "images")
    assert done.returncode == 1
    assert "AMBER_4.jpg is not the picture of sample 3" in done.stderr
    assert not out.exists()


def test_what_is_missing_is_said_in_a_sentence(cli, planted_dataset, tmp_path):
    for arguments, sentence in (
        ((tmp_path / "none", "p.html"), "neither a folder nor"),
        ((planted_dataset, "p.html", "--image-dir", "none"), "image folder none does not exist"),
        ((planted_dataset, "p.html", "--max-bytes", "much"), "is not a size"),
    ):
        done = cli("report", *arguments)
        assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr
