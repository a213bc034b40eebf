"""The report in headless Chromium: what it shows where, and what it does when it is used."""

import re

import numpy as np
import pytest
from planted_store import (
    COL,
    LAYER,
    N_LAYERS,
    N_SAMPLES,
    PLANTED,
    ROW,
    SAMPLE,
    SIDE,
    TEXTS,
    vectors,
)

from llava_amber_activations.sources.source import open_source

CHOSEN = "#strip .chosen"


def light(page, selector):
    """Return how light each of some elements is: the sum of red, green and blue."""
    attribute = "fill" if selector.startswith("#picture") else "background-color"
    colours = page.eval_on_selector_all(
        selector,
        f"nodes => nodes.map(n => getComputedStyle(n).getPropertyValue('{attribute}'))",
    )
    return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]


def patch_values(page):
    """Return what the heat map holds of each patch, in rows: [SIDE, SIDE]."""
    values = page.eval_on_selector_all(
        "#picture rect", "nodes => nodes.map(n => Number(n.dataset.value))"
    )
    return np.array(values).reshape(SIDE, SIDE)


def go_to(page, sample, layer):
    page.select_option("#jump", str(sample))
    page.fill("#layer", str(layer))


def test_a_planted_norm_lights_up_the_right_patch_of_the_right_sample(page):
    go_to(page, SAMPLE, LAYER)
    norms = np.linalg.norm(vectors()[f"x_{LAYER:02d}"].astype(np.float64), axis=-1)
    patches = norms[:, 1 : 1 + SIDE**2].reshape(-1, SIDE, SIDE)
    np.testing.assert_allclose(patch_values(page), patches[SAMPLE], rtol=1e-6)
    lightness = np.array(light(page, "#picture rect")).reshape(SIDE, SIDE)
    assert np.unravel_index(lightness.argmax(), lightness.shape) == (ROW, COL)
    assert np.sort(lightness.ravel())[-2] < lightness[ROW, COL]
    # The token of the patch has the same colour in the strip.
    (in_strip,) = light(page, f"#strip [data-n='{PLANTED}']")
    assert in_strip == lightness[ROW, COL]
    # Neither in another sample nor in another layer is it the largest.
    go_to(page, SAMPLE - 1, LAYER)
    np.testing.assert_allclose(patch_values(page), patches[SAMPLE - 1], rtol=1e-6)
    go_to(page, SAMPLE, LAYER - 1)
    assert patch_values(page).max() < norms[SAMPLE, PLANTED] / 10


def test_cosines_to_a_chosen_patch(page):
    go_to(page, 4, 2)
    page.click("#picture rect[data-row='1'][data-col='3']")
    page.select_option("#measure", "cosine")
    x = vectors()["x_02"][4].astype(np.float64)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    wanted = units[1 : 1 + SIDE**2] @ units[1 + SIDE + 3]
    np.testing.assert_allclose(patch_values(page).ravel(), wanted, atol=0.5 / 127 + 1e-6)
    assert "row 1, column 3" in page.inner_text("#place")


def test_norms_of_mlp_out(page):
    go_to(page, 1, 4)
    page.select_option("#measure", "mlp_out")
    wanted = np.linalg.norm(vectors()["mlp_out_04"][1, 1 : 1 + SIDE**2].astype(np.float64), axis=1)
    np.testing.assert_allclose(patch_values(page).ravel(), wanted, rtol=1e-6)


def test_keys(page):
    page.focus("#browser")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#which") == "Sample 1 · AMBER_2.jpg"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#which").startswith(f"Sample {N_SAMPLES - 1} ")
    page.fill("#layer", "2")
    page.focus("#browser")
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#layer-now") == "L3"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#layer-now") == "L1"
    assert page.url.endswith(f"#sample={N_SAMPLES - 1}&layer=1")
    before = int(page.get_attribute(CHOSEN, "data-n"))
    page.keyboard.press("Shift+ArrowLeft")
    assert int(page.get_attribute(CHOSEN, "data-n")) == before - 1
    page.keyboard.press("Enter")
    assert page.input_value("#measure") == "cosine"
    page.keyboard.press("Enter")
    assert page.input_value("#measure") == "x"


def test_tokens_query_and_answer_are_there_to_read(page):
    assert page.inner_text("#query").endswith("What?")
    assert "A dog and a cat" in page.inner_text("#answer")
    texts = page.eval_on_selector_all("#strip .t", "nodes => nodes.map(n => n.textContent)")
    assert texts == [text for text in TEXTS if text != "<image>"]
    assert page.locator("#strip .p").count() == SIDE**2
    box = page.locator("#picture img").bounding_box()
    assert abs(box["width"] / box["height"] - 1) < 0.02


def test_mentions_are_marked_in_the_answer_and_among_its_tokens(page):
    """Which is hallucinated is told by more than a colour; a word chooses its token."""
    marks = page.eval_on_selector_all(
        "#answer mark", "nodes => nodes.map(n => [n.textContent, n.className, n.title])"
    )
    assert marks == [
        ["dog", "true", "true of the picture: annotated “dog”"],
        ["cat", "hallucinated", "hallucinated: annotated “cat”"],
    ]
    styles = page.eval_on_selector_all(
        "#answer mark", "nodes => nodes.map(n => getComputedStyle(n).borderBottomStyle)"
    )
    assert styles == ["solid", "dashed"]
    tokens = {
        name: page.eval_on_selector_all(f"#strip .{name}", "nodes => nodes.map(n => n.textContent)")
        for name in ("mentioned", "hallucinated")
    }
    assert tokens == {"mentioned": [" dog"], "hallucinated": [" cat"]}
    page.click("#answer mark.hallucinated")
    assert page.inner_text(CHOSEN).strip() == "cat"
    assert page.inner_text("#others").split() == [
        *("in", "the", "picture", "dog", "often", "made", "up", "cat", "place", "outside")
    ]


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # The figures by layer are drawn again when the window changes, a moment later.
    for _ in range(100):
        wide = page.eval_on_selector_all(
            "figure, .browser, .strip, .chart .main-svg, pre, table",
            "nodes => nodes.filter(n => n.getBoundingClientRect().right > innerWidth).length",
        )
        if not wide:
            break
        page.wait_for_timeout(50)
    assert not wide
    paper, ink = page.evaluate(
        "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (lightness[0] > lightness[1]) == (scheme == "light")
    # The figures' letters, too.
    letters = page.eval_on_selector("#chart-x .xtitle", "node => getComputedStyle(node).fill")
    assert (sum(map(int, re.findall(r"\d+", letters)[:3])) < 384) == (scheme == "light")


def test_the_switch_of_light_and_dark(page):
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert page.inner_text("#theme") == "Dark"
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.inner_text("#theme") == "Light"
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before


def test_every_figure_has_its_sentence_and_says_it_to_who_cannot_see(page):
    figures = page.locator("figure")
    assert figures.count() == 8
    for number in range(figures.count()):
        figure = figures.nth(number)
        assert len(figure.locator("figcaption").inner_text()) > 60
        drawn = figure.locator("[role=img], table")
        assert drawn.count()
    for chart in page.locator(".chart").all():
        assert len(chart.get_attribute("aria-label")) > 60
        assert chart.locator("svg.main-svg").count()
    # One map a layer, each of SIDE × SIDE.
    sizes = page.eval_on_selector_all("canvas", "nodes => nodes.map(n => [n.width, n.height])")
    assert sizes == [[SIDE, SIDE]] * N_LAYERS


def test_it_asks_nobody_and_complains_of_nothing(open_page, planted_report, planted_dataset):
    browsed = open_page(planted_report)
    page = browsed.page
    for _ in range(N_SAMPLES + 1):
        page.click("#next")
    for measure in ("cosine", "mlp_out", "x"):
        page.select_option("#measure", measure)
    page.hover("#chart-x")
    page.click("#theme")
    assert browsed.asked == [planted_report.as_uri()]
    assert browsed.said == []
    # What a file is called is text, wherever it is.
    assert page.locator("h1 i").count() == 0
    assert open_source(planted_dataset).manifest.recipe.benchmark in page.inner_text("#recipe")
    # Even if it wanted to ask, it could not.
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')")
        == "refused"
    )
    page.close()
