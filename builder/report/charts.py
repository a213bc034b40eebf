"""The page's figures by layer, as plotly draws them: JSON of data and layout.

What is text colour or lines of a grid the page itself sets, so that they fit light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from builder.drawn.by_layer import KindNorms, LayerFigures, Spread
from builder.drawn.sinks import TOP_DIMENSIONS
from llava_amber_activations.formats.layers import split_name

# Okabe & Ito's colours, which people who do not see red or green tell apart; those of them that
# are seen on white and on black.
_BLUE, _VERMILLION, _GREEN, _PURPLE, _GREY = "#0084C8", "#D55E00", "#009E73", "#CC79A7", "#8A8A8A"
_SKY, _ORANGE = "#56B4E9", "#E69F00"
KIND_COLOURS = {
    "all": _GREY,
    "text": _BLUE,
    "image": _VERMILLION,
    "generated": _GREEN,
    "answer": _ORANGE,
    "system": _SKY,
    "unknown": _PURPLE,
}
_DASHES = {
    "all": "dot",
    "text": "solid",
    "image": "dash",
    "generated": "dashdot",
    "answer": "longdash",
    "system": "longdashdot",
    "unknown": "dot",
}
_OF_DIMENSIONS = (_BLUE, _VERMILLION, _GREEN)
_BAND = 0.18
# Between so many times there are enough powers of ten to name these alone.
_MANY_TIMES = 100
_MARGINS = {"l": 62, "r": 12, "t": 12, "b": 46}

Figure = dict[str, Any]


def norms_chart(layers: Sequence[LayerFigures], vector: str) -> Figure | None:
    """Draw the median norm by kind of token, and its 5th to 95th percentile; None without any.

    Args:
        vector: `x` or `mlp_out`.
    """
    found: dict[str, list[tuple[int, KindNorms]]] = {}
    for figures in layers:
        for norms in figures.x if vector == "x" else figures.mlp_out:
            found.setdefault(norms.kind, []).append((figures.layer, norms))
    # Where there is one kind alone, all rows are it.
    if len(found) == 2:
        del found["all"]
    if not found:
        return None
    figure = _figure()
    for kind, points in found.items():
        numbers = [layer for layer, _ in points]
        spreads = [norms.spread for _, norms in points]
        if kind != "all":
            _add_band(figure, numbers, spreads, KIND_COLOURS[kind])
        hover = [
            f"L{layer}, {kind}<br>median {norms.spread.median:.4g}<br>"
            f"5–95 %: {norms.spread.low:.4g} … {norms.spread.high:.4g}<br>{norms.n_rows} rows"
            for layer, norms in points
        ]
        medians = [spread.median for spread in spreads]
        _add_line(figure, kind, numbers, medians, hover, KIND_COLOURS[kind], _DASHES[kind])
    spreads = [norms.spread for points in found.values() for _, norms in points]
    least, most = min(each.low for each in spreads), max(each.high for each in spreads)
    figure.update_yaxes(title_text=f"norm of {vector}", type="log" if least > 0 else "linear")
    if least > 0 and most > _MANY_TIMES * least:
        figure.update_yaxes(dtick=1)
    return _drawn(figure, layers)


def energy_chart(layers: Sequence[LayerFigures]) -> Figure | None:
    """Draw the share of x's energy in its largest dimensions; None where there is no `x`."""
    with_sinks = [figures for figures in layers if figures.sinks is not None]
    if not with_sinks:
        return None
    figure = _figure()
    for place, count in enumerate(TOP_DIMENSIONS):
        name = "largest dimension" if count == 1 else f"{count} largest"
        shares, hover = [], []
        for figures in with_sinks:
            assert figures.sinks is not None
            share = figures.sinks.top_shares[place]
            named = ", ".join(str(each.dimension) for each in figures.sinks.dimensions[:count])
            shares.append(share)
            hover.append(f"L{figures.layer}: {share:.1%}<br>{_short(named)}")
        numbers = [figures.layer for figures in with_sinks]
        dash = ("solid", "dash", "dot")[place]
        _add_line(figure, name, numbers, shares, hover, _OF_DIMENSIONS[place], dash)
    figure.update_yaxes(title_text="share of the energy", tickformat=".0%", range=[0, 1.02])
    return _drawn(figure, layers)


def cosine_chart(layers: Sequence[LayerFigures]) -> Figure | None:
    """Draw the cosine of each layer's `x` to the next one's; None where there is no pair."""
    return _one_line(
        [(figures, figures.cosine_to_next) for figures in layers],
        lambda figures: f"L{figures.layer} and L{figures.next_layer}",
        "cosine to the next layer",
        layers,
    )


def ridge_chart(layers: Sequence[LayerFigures]) -> Figure | None:
    """Draw how much of `mlp_out` a ridge regression explains; None where nothing was fitted."""
    points = [
        (figures.layer, figures.ridge.explained, figures.ridge.strength)
        for figures in layers
        if figures.ridge is not None and figures.ridge.explained is not None
    ]
    if not points:
        return None
    figure = _figure()
    hover = [
        f"L{layer}: {explained:.1%}<br>λ {strength:g}" for layer, explained, strength in points
    ]
    figure.add_trace(
        go.Bar(
            x=[layer for layer, _, _ in points],
            y=[explained for _, explained, _ in points],
            hovertext=hover,
            hoverinfo="text",
            marker={"color": _BLUE},
        )
    )
    least = min(0.0, *(explained for _, explained, _ in points), 0.0)
    title = "variance explained"
    figure.update_yaxes(title_text=title, tickformat=".0%", range=[max(least, -1), 1.02])
    figure.update_layout(showlegend=False, bargap=0.35)
    return _drawn(figure, layers)


def _one_line(
    points: Sequence[tuple[LayerFigures, Spread | None]],
    named: Callable[[LayerFigures], str],
    title: str,
    layers: Sequence[LayerFigures],
) -> Figure | None:
    known = [(figures, spread) for figures, spread in points if spread is not None]
    if not known:
        return None
    figure = _figure()
    numbers = [figures.layer for figures, _ in known]
    spreads = [spread for _, spread in known]
    _add_band(figure, numbers, spreads, _BLUE)
    hover = [
        f"{named(figures)}<br>median {spread.median:.3f}<br>"
        f"5–95 %: {spread.low:.3f} … {spread.high:.3f}"
        for figures, spread in known
    ]
    _add_line(figure, title, numbers, [s.median for s in spreads], hover, _BLUE, "solid")
    figure.update_yaxes(title_text=title)
    figure.update_layout(showlegend=False)
    return _drawn(figure, layers)


def _figure() -> go.Figure:
    # Without plotly's template, which is longer than the figures.
    return go.Figure(layout={"template": go.layout.Template()})


def _add_band(figure: go.Figure, x: Sequence[int], spreads: Sequence[Spread], colour: str) -> None:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    figure.add_trace(
        go.Scatter(
            x=[*x, *reversed(x)],
            y=[*(s.high for s in spreads), *(s.low for s in reversed(spreads))],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},{_BAND})",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            mode="lines",
        )
    )


def _add_line(
    figure: go.Figure,
    name: str,
    x: Sequence[int],
    y: Sequence[float],
    hover: Sequence[str],
    colour: str,
    dash: str,
) -> None:
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=list(y),
            name=name,
            mode="lines+markers",
            hovertext=list(hover),
            hoverinfo="text",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 5},
        )
    )


def _drawn(figure: go.Figure, layers: Sequence[LayerFigures]) -> Figure:
    first, last = layers[0].layer, layers[-1].layer
    ticks = {"tickvals": [first], "ticktext": [split_name(first)]} if first == last else {}
    figure.update_xaxes(title_text="layer", range=[first - 0.6, last + 0.6], **ticks)
    figure.update_layout(
        margin=_MARGINS,
        height=320,
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        dragmode=False,
    )
    found: Figure = figure.to_plotly_json()
    return {"data": list(found["data"]), "layout": found["layout"]}


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + " …"
