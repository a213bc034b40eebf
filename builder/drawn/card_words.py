"""What the card's figures show, in words: for whoever cannot see them, and for whoever can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from builder.drawn.card_look import CardLook, EnergyJump, ExampleRow
from builder.drawn.sinks import LayerSinks
from llava_amber_activations.formats.dataset_folder import (
    ENERGY_FIGURE,
    KINDS_FIGURE,
    PATCHES_FIGURE,
    RMS_FIGURE,
    SINKS_FIGURE,
)

# A position that holds less of a dimension's energy is not named.
_LEAST_HELD = 0.05


def figure_words(look: CardLook, width: int) -> dict[str, tuple[str, str]]:
    """Return an alternative text and a sentence for each figure that a dataset may have.

    Args:
        width: H.
    """
    words = {RMS_FIGURE: _rms(look, width)}
    if look.energy:
        words[ENERGY_FIGURE] = _energy(look)
    if look.kinds:
        words[KINDS_FIGURE] = _kinds(look)
    if look.sinks:
        words[SINKS_FIGURE] = _sinks(look)
    if look.patches:
        words[PATCHES_FIGURE] = _patches(look)
    return words


def _rms(look: CardLook, width: int) -> tuple[str, str]:
    parts = []
    for name, norms in (("x", look.x_norms), ("mlp_out", look.mlp_out_norms)):
        if norms:
            (first, at_first), (last, at_last) = norms[0], norms[-1]
            parts.append(
                f"the mean row of {name} has norm {_number(at_first)} at layer {first} and "
                f"{_number(at_last)} at layer {last}"
            )
    alt = (
        f"Root mean square of x and of mlp_out by layer, on a logarithmic axis: {', '.join(parts)}"
    )
    sentence = (
        "A row's root mean square is its norm divided by "
        f"√{width}; the line is the median row, and the band holds 90 % of the rows."
    )
    return alt, sentence


def _energy(look: CardLook) -> tuple[str, str]:
    first, most, last = (
        look.energy[0],
        max(look.energy, key=lambda each: each[1]),
        look.energy[-1],
    )
    said = [
        f"{_percent(share)} at layer {layer}"
        for layer, share, _ in dict.fromkeys((first, most, last))
    ]
    alt = (
        "Share of the energy of x in its 1, 4 and 16 largest dimensions, by layer: the largest one "
        f"holds {_listed(said)}"
    )
    return alt, _jump(look.jump, look, most)


def _jump(jump: EnergyJump | None, look: CardLook, most: tuple[int, float, int]) -> str:
    if jump is None or not jump.is_jump:
        layer, share, dimension = most
        return (
            f"It does not jump between two layers: no dimension holds more than {_percent(share)}, "
            f"as dimension {dimension} does at layer {layer}."
        )
    sentence = (
        f"It jumps from {_percent(jump.share_before)} at layer {jump.before} to "
        f"{_percent(jump.share)} at layer {jump.layer}: that is dimension {jump.dimension}"
    )
    held = [
        f"position {position} holds {_percent(share)}"
        for position, share in jump.positions
        if share >= _LEAST_HELD
    ]
    if not held:
        return f"{sentence}."
    return f"{sentence}, of whose energy {_listed(held)} ({_drawn(look)})."


def _kinds(look: CardLook) -> tuple[str, str]:
    layers = [layer for layer, _ in look.x_norms]
    middle = layers[len(layers) // 2]
    said = [f"{line.kind} {_number(line.x[middle])}" for line in look.kinds]
    alt = (
        "Mean norm of x and of mlp_out by layer, a line for each kind of token: at layer "
        f"{middle}, that of x is {_listed(said)}"
    )
    sentence = (
        "Solid lines are of all rows, dashed ones of those that are no outliers: where they part, "
        "a few rows are over ten times as large as the median."
    )
    return alt, sentence


def _sinks(look: CardLook) -> tuple[str, str]:
    top = max(look.sinks, key=lambda found: found.top_shares[0])
    dimension = top.dimensions[0]
    alt = (
        "Share of the energy of x by layer, of the positions and dimensions that hold the most: at "
        f"layer {top.layer}, dimension {dimension.dimension} holds {_percent(dimension.share)}"
    )
    if look.one_row_a_sample:
        return alt, f"Taken from {_drawn(look)}; each sample has one."
    position = top.positions[0]
    alt += f", and position {position.position} {_percent(position.share)}"
    return alt, f"{_where(top)} Taken from {_drawn(look)}."


def _where(found: LayerSinks) -> str:
    """Say which rows are the outliers of a layer, by position and token."""
    if not found.n_outliers:
        return (
            f"At layer {found.layer} no row is over ten times as large as the median one, which "
            f"has norm {_number(found.median_norm)}."
        )
    position = found.positions[0]
    token = "" if position.token is None else f" ({code(position.token)})"
    return (
        f"At layer {found.layer}, {found.n_outliers} rows are over ten times as large as the "
        f"median one and hold {_percent(found.outlier_share)} of the energy; those at position "
        f"{position.position}{token} have a mean norm of {_number(position.mean_norm)}, and the "
        f"median row has {_number(found.median_norm)}."
    )


def _patches(look: CardLook) -> tuple[str, str]:
    middle = look.patches[len(look.patches) // 2]
    grid = np.array(middle.norms, dtype=np.float64)
    low, high = _place(grid, int(np.nanargmin(grid))), _place(grid, int(np.nanargmax(grid)))
    alt = (
        f"Mean norm of x at each of {grid.shape[0]} × {grid.shape[1]} patches, at several layers: "
        f"at layer {middle.layer} from {low} to {high}"
    )
    sentence = (
        f"Dark is small and bright is large, in each layer by itself, over {middle.n_samples} "
        "pictures; what is below the 2nd and above the 98th percentile has the colour of these."
    )
    return alt, sentence


def _place(grid: np.ndarray, number: int) -> str:
    row, column = divmod(number, grid.shape[1])
    return f"{_number(float(grid[row, column]))} (row {row}, column {column})"


def example_lines(examples: Sequence[ExampleRow]) -> list[tuple[str, list[str]]]:
    """Return example rows as the lines of a table: a name, and what it is in each of them."""
    known = [example for example in examples if example.norms]
    lines = [
        ("sample", [f"{each.sample} (id {each.id})" for each in known]),
        ("picture", [code(each.image).replace("|", "\\|") or "unknown" for each in known]),
        ("query", [_plain(each.query) if each.query else "" for each in known]),
        ("kind of token", [each.kind or "unknown" for each in known]),
        ("position", [str(each.position) for each in known]),
        ("token", [_in_place(each).replace("|", "\\|") for each in known]),
        (
            "patch",
            [
                "" if each.patch is None else "row {}, column {}".format(*each.patch)
                for each in known
            ],
        ),
        *(
            (f"norm of `x` at layer {layer}", [_number(each.norms[n][1]) for each in known])
            for n, (layer, _) in enumerate(known[0].norms if known else ())
        ),
    ]
    return [(name, values) for name, values in lines if any(values)]


def _in_place(example: ExampleRow) -> str:
    """Return a row's token among its neighbours."""
    if example.token is None:
        return "unknown"
    before, after = (code("".join(each)) for each in (example.before, example.after))
    return f"{before} **{code(example.token)}** {after}".strip()


def code(text: str) -> str:
    """Return text as Markdown's code, on one line; nothing of nothing."""
    shown = text.replace("\n", "↵").replace("`", "'")
    return f"`{shown}`" if shown.strip() else ("`␣`" if shown else "")


def _plain(text: str) -> str:
    """Return text as Markdown shows it in a table: on one line, nothing of it a mark."""
    shown = " ".join(text.split())
    for mark in "\\`*_{}[]<>#|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown


def _drawn(look: CardLook) -> str:
    if look.n_drawn_rows == look.n_rows:
        return f"all {look.n_rows} rows"
    return f"{look.n_drawn_rows} rows of {look.n_drawn_samples} samples that were drawn"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(share: float) -> str:
    """Return two digits of a share, and three where two would be all of it."""
    if 0.9995 <= share < 1:
        return "over 99.9 %"
    if share < 0.1:
        return f"{share * 100:.2g} %"
    return f"{share * 100:.{1 if 0.99 <= share < 1 else 0}f} %"


def _number(value: float) -> str:
    """Return three digits of a number, and never an exponent where it is not needed."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
