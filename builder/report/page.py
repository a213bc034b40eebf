"""The page, put together: text, figures, the browser's data and plotly, in one file."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from builder.asked.report_asked import MARK
from builder.drawn.by_layer import LayerFigures
from builder.drawn.patches import PatchMap
from builder.drawn.rows import DrawnRows
from builder.drawn.sinks import LayerSinks
from builder.report import charts, contents, said
from builder.report.number_words import number, share, token_name
from llava_amber_activations import __version__
from llava_amber_activations.formats.dataset_folder import Manifest
from llava_amber_activations.formats.layers import split_name

_MOST_LINES = 10
_MOST_MAPS = 12
# Whether each holds numbers.
_SINK_COLUMNS = (
    ("layer", False),
    ("largest position", False),
    ("of the energy", True),
    ("mean norm", True),
    ("median of all", True),
    ("largest dimensions", False),
    ("largest token", False),
)


@dataclass(frozen=True)
class PageParts:
    """What a page shows.

    Attributes:
        name: of the dataset: how it is loaded.
        manifest: of the dataset.
        rows: that were drawn, or None where there are no vectors of layers.
        layers, maps: computed of them; none where there are none.
        samples_data: the browser's blob; None where there is nothing to browse.
        said_of_browser, said_of_drawn: sentences.
    """

    name: str
    manifest: Manifest
    rows: DrawnRows | None
    layers: tuple[LayerFigures, ...]
    maps: tuple[PatchMap, ...]
    samples_data: bytes | None
    said_of_browser: str
    said_of_drawn: str


def page_text(parts: PageParts) -> str:
    """Return the page as HTML; it asks nobody for anything."""
    manifest = parts.manifest
    drawn = _charts(parts.layers)
    environment = Environment(
        loader=PackageLoader("builder.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    targets_of = contents.targets_of(manifest)
    return environment.get_template("page.html.j2").render(
        mark=MARK,
        name=parts.name,
        title=contents.title(manifest),
        lede=contents.lede(manifest),
        warnings=manifest.warnings,
        facts=contents.facts(manifest),
        code=contents.code(manifest, parts.name),
        sizes=contents.sizes(manifest),
        drawn=parts.said_of_drawn,
        layers_there=contents.has_vectors(manifest),
        site=manifest.recipe.x_site,
        n_targets=0 if targets_of is None else manifest.n_targets,
        targets_of=targets_of,
        said_of_drawing=contents.said_of_drawing(manifest),
        browsed=parts.samples_data is not None,
        said_of_browser=parts.said_of_browser,
        samples_data="" if parts.samples_data is None else _base64(parts.samples_data),
        said_of_rows=parts.said_of_drawn,
        charts=[
            {"name": name, "title": title, "said": sentence}
            for name, title, sentence, figure in drawn
            if figure is not None
        ],
        charts_json=_json({name: figure for name, _, _, figure in drawn if figure is not None}),
        sinks=_sinks(parts),
        maps=_maps(parts.maps),
        said_of_maps=said.said_of_patches(parts.maps) if parts.maps else "",
        recipe=contents.recipe_table(manifest),
        release=__version__,
        css=_packaged("page.css"),
        js=_packaged("page.js"),
        plotly=_plotly(),
    )


def _charts(
    layers: Sequence[LayerFigures],
) -> list[tuple[str, str, str, charts.Figure | None]]:
    if not layers:
        return []
    return [
        ("x", "Size of x", said.said_of_norms(layers, "x"), charts.norms_chart(layers, "x")),
        (
            "mlp_out",
            "Size of mlp_out",
            said.said_of_norms(layers, "mlp_out"),
            charts.norms_chart(layers, "mlp_out"),
        ),
        (
            "energy",
            "Energy in few dimensions",
            said.said_of_energy(layers),
            charts.energy_chart(layers),
        ),
        (
            "cosine",
            "From a layer to the next",
            said.said_of_cosines(layers),
            charts.cosine_chart(layers),
        ),
        (
            "ridge",
            "What a ridge regression explains of mlp_out",
            said.said_of_ridge(layers),
            charts.ridge_chart(layers),
        ),
    ]


def _sinks(parts: PageParts) -> dict[str, Any] | None:
    found = [figures.sinks for figures in parts.layers if figures.sinks is not None]
    if not found or parts.rows is None:
        return None
    step = max(1, -(-len(found) // _MOST_LINES))
    largest = max(found, key=lambda each: each.positions[0].share)
    chosen = [each for n, each in enumerate(found) if n % step == 0 or each is largest]
    # Tokens are last.
    n_columns = len(_SINK_COLUMNS) - (not any(each.tokens for each in chosen))
    return {
        "said": said.said_of_sinks(parts.layers, len(parts.rows)),
        "columns": _SINK_COLUMNS[:n_columns],
        "lines": [_sink_line(each)[:n_columns] for each in chosen],
    }


def _sink_line(sinks: LayerSinks) -> list[str]:
    """Return the cells of `_SINK_COLUMNS`."""
    top = sinks.positions[0]
    called = "" if top.token is None else f" {token_name(top.token)}"
    token = sinks.tokens[0] if sinks.tokens else None
    return [
        split_name(sinks.layer),
        f"{top.position}{called}",
        share(top.share),
        number(top.mean_norm),
        number(sinks.median_norm),
        ", ".join(f"{each.dimension} ({share(each.share)})" for each in sinks.dimensions[:3]),
        "" if token is None else f"{token_name(token.token)} ({share(token.share)})",
    ]


def _maps(maps: Sequence[PatchMap]) -> list[dict[str, str]]:
    step = max(1, -(-len(maps) // _MOST_MAPS))
    shown = []
    for each in maps[::step]:
        known = [norm for line in each.norms for norm in line if norm is not None]
        shown.append(
            {
                "layer": split_name(each.layer),
                "norms": json.dumps(
                    [
                        [None if v is None else float(f"{v:.4g}") for v in line]
                        for line in each.norms
                    ]
                ),
                "low": number(min(known)),
                "high": number(max(known)),
            }
        )
    return shown


def _packaged(name: str) -> str:
    return files("builder.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    return _base64(gzip.compress(get_plotlyjs().encode(), mtime=0))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(value: Any) -> str:
    # Nothing in it may end the script that it stands in.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
