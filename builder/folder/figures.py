"""The two figures of the card: how large the vectors of each layer are, and where x's energy is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from builder.shards.row_sizes import Float64s
from builder.shards.vector_moments import VectorMoments
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.dataset_folder import ENERGY_FIGURE, RMS_FIGURE
from llava_amber_activations.formats.layers import mlp_out_name, x_name

# Okabe & Ito's colours, which people who do not see red or green tell apart.
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_SHADES = ("#0b3d66", "#2f7fbf", "#a9cdea")
_TOP_DIMENSIONS = (1, 4, 16)


def draw_figures(folder: Path, moments: dict[str, VectorMoments], n_layers: int) -> None:
    """Draw both figures into a dataset folder, from the moments of its vectors."""
    _save(_rms_figure(moments, n_layers), folder / RMS_FIGURE)
    _save(_energy_figure(moments, n_layers), folder / ENERGY_FIGURE)


def _rms_figure(moments: dict[str, VectorMoments], n_layers: int) -> Figure:
    figure, axes = _layer_axes(n_layers)
    for label, name_of, colour in (("x", x_name, _BLUE), ("mlp_out", mlp_out_name, _ORANGE)):
        layers = [layer for layer in range(n_layers) if name_of(layer) in moments]
        bands = [moments[name_of(layer)].rms_quantiles((0.05, 0.5, 0.95)) for layer in layers]
        low, middle, high = np.array(bands).T
        axes.fill_between(layers, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(layers, middle, color=colour, marker="o", markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("RMS over the dimensions of a row")
    axes.set_title("Size of x and mlp_out: median and 5–95 % of rows")
    axes.legend(frameon=False)
    return figure


def _energy_figure(moments: dict[str, VectorMoments], n_layers: int) -> Figure:
    figure, axes = _layer_axes(n_layers)
    layers = [layer for layer in range(n_layers) if x_name(layer) in moments]
    shares = np.array([_top_shares(moments[x_name(layer)].whole.mean_square) for layer in layers])
    for column, (count, colour) in enumerate(zip(_TOP_DIMENSIONS, _SHADES, strict=True)):
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
    return [float(energy[:count].sum() / total) for count in _TOP_DIMENSIONS]


def _layer_axes(n_layers: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.2), dpi=120)
    # Fixed margins: finding them takes as long as drawing the rest.
    axes = figure.add_axes((0.1, 0.12, 0.88, 0.8))
    axes.set_xlabel("layer")
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=17))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as partial:
        # Without the version of matplotlib in it, equal data gives equal files.
        figure.savefig(partial, format="png", metadata={"Software": None})
