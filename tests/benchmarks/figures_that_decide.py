"""The plot of the README: the few ratios of the benchmark's table that decide a choice.

    python tests/benchmarks/figures_that_decide.py docs/benchmarks.md docs/images/benchmarks.svg

Drawn from the table itself, so that the picture says what the table says.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_RATIO = re.compile(r"([\d.,]+)(?: \(([\d.,]+)–([\d.,]+)\))?")


@dataclass(frozen=True)
class Ratio:
    """Ours / the other: the median, the lowest and the highest."""

    middle: float
    low: float
    high: float


# What each panel shows: its title, and for each bar its label and which line of the table it is.
FASTER = (
    "Times as fast (more is better)",
    (
        (
            "training batches\nagainst torch.load of .pt files",
            "one layer, batches of 64",
            "torch.load of the layers layout",
        ),
        (
            "training batches\nagainst datasets' torch format",
            "one layer, batches of 64",
            'with_format("torch")',
        ),
        (
            "building Parquet\nagainst Dataset.to_parquet",
            "all_layers, num_proc=1",
            "Dataset.to_parquet",
        ),
        (
            "capturing 64 hooks\nagainst SAELens' 64 runs",
            "64 hooks of one text model",
            "CacheActivationsRunner, 64 runs",
        ),
    ),
)
SMALLER = (
    "Share of the bytes (less is better)",
    (
        (
            "all layers on disk\nof the .pt layout",
            "all_layers: 64 vectors",
            "the layers layout, all layers",
        ),
    ),
)


def read_ratios(table: str) -> dict[tuple[str, str], Ratio]:
    """Read a table's ratios, by what was done and what it was compared with."""
    ratios = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 7 or not (match := _RATIO.fullmatch(cells[6])):
            continue
        numbers = [float(each.replace(",", "")) for each in match.groups() if each]
        ratios[cells[1], cells[2]] = Ratio(numbers[0], min(numbers), max(numbers))
    return ratios


def draw(table: str, path: Path) -> None:
    """Draw the two panels as SVG.

    Raises:
        KeyError: the table lacks a line that is drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    ratios = read_ratios(table)
    panels = (FASTER, SMALLER)
    heights = [len(bars) for _, bars in panels]
    figure, axes = plt.subplots(
        2, 1, figsize=(8, 0.6 * sum(heights) + 1.6), height_ratios=heights, layout="constrained"
    )
    figure.patch.set_facecolor("white")
    for each, (title, bars) in zip(axes, panels, strict=True):
        found = [ratios[work, other] for _, work, other in bars]
        rows = range(len(bars) - 1, -1, -1)
        middles = [ratio.middle for ratio in found]
        reach = [
            [ratio.middle - ratio.low for ratio in found],
            [ratio.high - ratio.middle for ratio in found],
        ]
        each.barh(rows, middles, xerr=reach, color="#3b7dd8", height=0.55, ecolor="#1d3f6e")
        each.axvline(1, color="#b33", linewidth=1, label="the other way")
        each.set_yticks(rows, [label for label, _, _ in bars], fontsize=8)
        each.set_title(title, fontsize=9, loc="left")
        for row, ratio in zip(rows, found, strict=True):
            each.annotate(
                f"{ratio.middle:.3g} ×",
                (ratio.high, row),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        each.set_xlim(0, 1.15 * max(1.0, *(ratio.high for ratio in found)))
        each.tick_params(axis="x", labelsize=8)
        each.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="upper right", frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]))
