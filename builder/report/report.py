"""The report of a dataset: rows are drawn, figures computed, the page put together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from builder.drawn.by_layer import layer_figures
from builder.drawn.patches import patch_maps
from builder.drawn.rows import DrawnRows, draw_rows
from builder.folder.provenance import public_recipe
from builder.report.browser_data import choose_browsed, pack
from builder.report.contents import said_of_browser, said_of_drawn
from builder.report.known_samples import grids_of, known_of, pictures_of
from builder.report.page import PageParts, page_text
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.reading.sample_table import read_samples_table
from llava_amber_activations.sources.fetched import fetched_bytes
from llava_amber_activations.sources.shard_file import is_remote
from llava_amber_activations.sources.source import Source


@dataclass(frozen=True)
class Report:
    """The report of a dataset.

    Attributes:
        text: the page, HTML.
        drawn: which rows it shows, and how many bytes travelled for them, as a sentence.
    """

    text: str
    drawn: str


def make_report(
    source: Source,
    *,
    max_bytes: int,
    image_dir: Path | None = None,
    name: str | None = None,
    fetched_before: int = 0,
) -> Report:
    """Draw rows of a dataset, and make the page that shows them.

    Args:
        max_bytes: most bytes of vectors that are read, before compression; one sample is read
            whatever its size.
        image_dir: folder of the pictures; the dataset's own where it is None and holds them.
        name: what the page calls the dataset; where it is None, the repo's id or the folder's name.
        fetched_before: what `fetched_bytes` said before the dataset was opened.

    Raises:
        ActivationsError: a shard or a picture is missing or damaged, or the Hub does not answer.
    """
    with Progress("report"):
        manifest = source.manifest
        table = read_samples_table(source)
        rows = draw_rows(source, max_bytes=max_bytes, table=table)
        data, said = None, ""
        if rows is not None:
            data, said = _browser(source, rows, table, image_dir)
        on_hub = is_remote(source.root)
        drawn = said_of_drawn(rows, manifest, fetched_bytes() - fetched_before, on_hub=on_hub)
        parts = PageParts(
            name=name or (source.name if on_hub else Path(source.root).name),
            manifest=dataclasses.replace(manifest, recipe=public_recipe(manifest.recipe)),
            rows=rows,
            layers=() if rows is None else layer_figures(rows),
            maps=() if rows is None else patch_maps(rows),
            samples_data=data,
            said_of_browser=said,
            said_of_drawn=drawn,
        )
        return Report(page_text(parts), drawn)


def _browser(
    source: Source, rows: DrawnRows, table: pa.Table, image_dir: Path | None
) -> tuple[bytes | None, str]:
    """Return the browser's data and what is said of it; None where no `x` was drawn."""
    browsed = choose_browsed(rows)
    if not browsed.samples:
        return None, ""
    grids = grids_of(rows, browsed)
    pictures = pictures_of(source, table, browsed, image_dir, grids)
    known = known_of(table, browsed)
    for sample, picture in pictures.items():
        known[sample] = {**known.get(sample, {}), "picture": picture}
    processor = source.manifest.recipe.image_processor
    said = said_of_browser(rows, browsed, len(pictures), processor, bool(grids))
    return pack(rows, browsed, known), said
