"""A dataset with a large norm planted in one patch, and its report in a headless browser."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from planted_store import ANNOTATIONS, make_planted_store

from builder.asked.report_asked import DEFAULT_MAX_BYTES
from builder.build import build
from builder.report.report import make_report
from builder.samples.asked import SamplesAsked
from llava_amber_activations.console.sizes import parse_size
from llava_amber_activations.sources.source import open_source


@pytest.fixture(scope="session")
def planted_store(image_dir, tmp_path_factory):
    """A store with a large norm in one patch, all of whose rows are known."""
    return make_planted_store(tmp_path_factory.mktemp("planted") / "store", image_dir)


@pytest.fixture(scope="session")
def planted_dataset(planted_store, tmp_path_factory):
    """Dataset folder of `planted_store`, all layers in one config, annotated."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    asked = SamplesAsked(annotations=folder / "annotations.json")
    build(planted_store, folder / "dataset", configs=["all_layers"], samples=asked)
    return folder / "dataset"


@pytest.fixture(scope="session")
def planted_report(planted_dataset, image_dir, tmp_path_factory):
    """The page of `planted_dataset`, with the photographs."""
    page = tmp_path_factory.mktemp("planted") / "report.html"
    made = make_report(
        open_source(planted_dataset), max_bytes=parse_size(DEFAULT_MAX_BYTES), image_dir=image_dir
    )
    page.write_text(made.text, encoding="utf-8")
    return page


@dataclass
class Browsed:
    """A page in the browser, and what it said and asked for."""

    page: object
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def chromium():
    """Chromium without a window; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = os.environ.get("LLAVA_AMBER_CHROMIUM", "/usr/bin/chromium")
    if not Path(program).exists():
        pytest.skip(f"there is no {program}: LLAVA_AMBER_CHROMIUM names another")
    with playwright.sync_playwright() as running:
        # The sandbox needs rights that a container has not.
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def open_page(chromium):
    """Function that opens a page and waits until it is drawn."""
    context = chromium.new_context(viewport={"width": 1600, "height": 1000}, color_scheme="light")

    def open_(path):
        browsed = Browsed(context.new_page())
        browsed.page.on("console", lambda message: browsed.said.append(message.text))
        browsed.page.on("pageerror", lambda error: browsed.said.append(str(error)))
        browsed.page.on("request", lambda request: browsed.asked.append(request.url))
        browsed.page.goto(path.as_uri())
        # Not by a function, which the page's own policy forbids.
        browsed.page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=30_000)
        return browsed

    yield open_
    context.close()


@pytest.fixture(scope="session")
def browsed_report(open_page, planted_report):
    """`planted_report` in the browser: one page for all tests, which each begin where they want."""
    return open_page(planted_report)


@pytest.fixture
def page(browsed_report):
    """That page at its first sample, in a wide window."""
    page = browsed_report.page
    page.set_viewport_size({"width": 1600, "height": 1000})
    page.emulate_media(color_scheme="light")
    page.select_option("#measure", "x")
    page.select_option("#jump", "0")
    return page
