"""The card's figures: how large the vectors of each layer are, and what carries the energy of `x`.

They are drawn with fixed margins: finding them takes as long as drawing the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from builder.drawn.card_look import CardLook
from builder.drawn.patches import PatchMap
from builder.drawn.sinks import TOP_DIMENSIONS, LayerSinks, shares_by_layer
from builder.shards.row_sizes import Float64s
from builder.shards.vector_moments import VectorMoments
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.dataset_folder import (
    ENERGY_FIGURE,
    KINDS_FIGURE,
    PATCHES_FIGURE,
    RMS_FIGURE,
    SINKS_FIGURE,
)
from llava_amber_activations.formats.layers import mlp_out_name, x_name

# Okabe & Ito's colours, which people who do not see red or green tell apart.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_SKY = "#56B4E9"
_GREY = "#7f7f7f"
_SHADES = ("#0b3d66", "#2f7fbf", "#a9cdea")
# Markers differ too, for whoever sees no colours.
_OF_KIND = {
    "text": (_BLUE, "o"),
    "image": (_ORANGE, "s"),
    "generated": (_GREEN, "^"),
    "answer": (_PURPLE, "v"),
    "system": (_SKY, "P"),
    "unknown": (_GREY, "D"),
}
_OF_RANK = ((_BLUE, "o"), (_ORANGE, "s"), (_GREEN, "^"), (_PURPLE, "D"))
_MAPS = 6
# What is much larger than the rest, as a sink is, does not hide it.
_MAP_RANGE = (2, 98)


def draw_figures(
    folder: Path, moments: dict[str, VectorMoments], n_layers: int, look: CardLook | None
) -> list[str]:
    """Draw the figures that a dataset has into its folder, and return their paths in it.

    Args:
        moments: of its vectors.
        look: at the dataset; None where it could not be looked at.
    """
    figures = {
        RMS_FIGURE: _rms_figure(moments, n_layers),
        ENERGY_FIGURE: _energy_figure(moments, n_layers),
    }
    if look is not None and len(look.kinds) > 1:
        figures[KINDS_FIGURE] = _kinds_figure(look, n_layers)
    if look is not None and look.sinks:
        figures[SINKS_FIGURE] = _sinks_figure(look, n_layers)
    if look is not None and look.patches:
        figures[PATCHES_FIGURE] = _patches_figure(look.patches)
    for path, figure in figures.items():
        _save(figure, folder / path)
    return list(figures)


def _rms_figure(moments: dict[str, VectorMoments], n_layers: int) -> Figure:
    figure, axes = _layer_axes(n_layers)
    for label, name_of, colour in (("x", x_name, _BLUE), ("mlp_out", mlp_out_name, _ORANGE)):
        layers = [layer for layer in range(n_layers) if name_of(layer) in moments]
        bands = [moments[name_of(layer)].rms_quantiles((0.05, 0.5, 0.95)) for layer in layers]
        low, middle, high = np.array(bands).T
        axes.fill_between(layers, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(layers, middle, color=colour, marker="o", markersize=3, label=label)
    logarithmic(axes)
    axes.set_ylabel("RMS over the dimensions of a row")
    axes.set_title("Size of x and mlp_out: median and 5–95 % of rows")
    axes.legend(frameon=False)
    return figure


def _energy_figure(moments: dict[str, VectorMoments], n_layers: int) -> Figure:
    figure, axes = _layer_axes(n_layers)
    layers = [layer for layer in range(n_layers) if x_name(layer) in moments]
    shares = np.array([_top_shares(moments[x_name(layer)].whole.mean_square) for layer in layers])
    for column, (count, colour) in enumerate(zip(TOP_DIMENSIONS, _SHADES, strict=True)):
        label = "largest dimension" if count == 1 else f"{count} largest dimensions"
        axes.plot(layers, shares[:, column], color=colour, marker="o", markersize=3, label=label)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_ylabel("share of the mean square of x")
    axes.set_title("How much of x's energy lies in few dimensions")
    axes.legend(frameon=False)
    return figure


def _top_shares(mean_square: Float64s) -> Sequence[float]:
    energy = np.sort(mean_square)[::-1]
    total = energy.sum() or 1.0
    return [float(energy[:count].sum() / total) for count in TOP_DIMENSIONS]


def _kinds_figure(look: CardLook, n_layers: int) -> Figure:
    figure, both = _two_layer_axes(n_layers)
    for axes, title in zip(both, ("x", "mlp_out"), strict=True):
        for line in look.kinds:
            of_all, usual = (
                (line.x, line.usual_x) if title == "x" else (line.mlp_out, line.usual_mlp_out)
            )
            colour, marker = _OF_KIND[line.kind]
            axes.plot(of_all, color=colour, marker=marker, markersize=4, label=line.kind)
            if not np.allclose(of_all, usual, rtol=1e-3, equal_nan=True):
                axes.plot(usual, color=colour, linestyle="--", linewidth=1)
        logarithmic(axes)
        axes.set_title(f"Mean norm of {title}", fontsize=11)
    both[0].legend(frameon=False)
    both[0].set_ylabel("Euclidean norm")
    return figure


def _sinks_figure(look: CardLook, n_layers: int) -> Figure:
    if look.one_row_a_sample:
        figure, axes = _layer_axes(n_layers)
        both = [axes]
    else:
        figure, both = _two_layer_axes(n_layers)
        _draw_shares(both[0], look.sinks, "position")
        both[0].set_title("Which positions carry the energy of x", fontsize=11)
    _draw_shares(both[-1], look.sinks, "dimension")
    both[-1].set_title("Which dimensions carry the energy of x", fontsize=11)
    both[0].set_ylabel("share of the drawn rows' energy")
    return figure


def _draw_shares(
    axes: Axes, sinks: Sequence[LayerSinks], what: Literal["position", "dimension"]
) -> None:
    """Draw the shares of the few that hold the most of the energy in any layer."""
    shares = shares_by_layer(sinks, what)
    layers = [found.layer for found in sinks]
    for (colour, marker), number in zip(_OF_RANK, shares, strict=False):
        label = f"{what} {number}"
        axes.plot(layers, shares[number], color=colour, marker=marker, markersize=4, label=label)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.legend(frameon=False)


def _patches_figure(maps: Sequence[PatchMap]) -> Figure:
    chosen = [maps[round(n)] for n in np.linspace(0, len(maps) - 1, min(_MAPS, len(maps)))]
    grids = [np.array(each.norms, dtype=np.float64) for each in chosen]
    n_rows, n_columns = grids[0].shape
    width = 8.0
    side = 0.96 / len(chosen)
    tall = width * side * 0.92 * min(3.0, n_rows / n_columns)
    height = tall + 1.0
    figure = Figure(figsize=(width, height), dpi=120)
    figure.suptitle("Mean norm of x at each patch, as the picture lies", y=1 - 0.12 / height)
    for number, (each, grid) in enumerate(zip(chosen, grids, strict=True)):
        box = (0.02 + number * side, 0.3 / height, side * 0.92, tall / height)
        axes = figure.add_axes(box)
        low, high = np.nanpercentile(grid, _MAP_RANGE)
        axes.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"layer {each.layer}", fontsize=10)
        axes.set_xlabel(f"{low:.3g} – {high:.3g}", fontsize=8)
    return figure


def _layer_axes(n_layers: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.2), dpi=120)
    axes = figure.add_axes((0.1, 0.12, 0.88, 0.8))
    _by_layer(axes, n_layers, 17)
    return figure, axes


def _two_layer_axes(n_layers: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, 3.6), dpi=120)
    both = [figure.add_axes((left, 0.14, 0.4, 0.75)) for left in (0.09, 0.58)]
    for axes in both:
        _by_layer(axes, n_layers, 9)
    return figure, both


def _by_layer(axes: Axes, n_layers: int, most_ticks: int) -> None:
    axes.set_xlabel("layer")
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=most_ticks))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


class _PlainLogFormatter(LogFormatter):
    """Labels the ticks that matplotlib would, as `0.1` and not as `1e-01`."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers: to set powers takes twice as long."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_PlainLogFormatter())
    axes.yaxis.set_minor_formatter(_PlainLogFormatter(labelOnlyBase=False))


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as partial:
        # Without the version of matplotlib in it, equal data gives equal files.
        figure.savefig(partial, format="png", metadata={"Software": None})
