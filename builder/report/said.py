"""What the page says of each figure: sentences with the figure's own numbers.

A figure's first sentence says what is drawn, the others what is seen; they are its alternative
text, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from builder.drawn.by_layer import KindNorms, LayerFigures
from builder.drawn.patches import PatchMap
from builder.drawn.ridge import RidgeFit
from builder.drawn.sinks import LayerSinks
from builder.report.number_words import in_list, number, share, token_name
from llava_amber_activations.formats.layers import split_name

# A jump of the share, from a layer to the next that was drawn, that is worth a sentence.
_JUMP = 0.2


def said_of_norms(layers: Sequence[LayerFigures], vector: str) -> str:
    """Say how large a vector is by layer and kind of token.

    Args:
        vector: `x` or `mlp_out`.
    """
    drawn = [
        (figures.layer, norms)
        for figures in layers
        if (norms := figures.x if vector == "x" else figures.mlp_out)
    ]
    if not drawn:
        return f"{vector} is not in this data."
    what = "median Euclidean norm; the band holds the middle 90 % of the rows."
    sentences = [f"{vector} by layer and kind of token: {what}"]
    all_rows = [(layer, _of_kind(norms, "all")) for layer, norms in drawn]
    medians = [(layer, norms.spread.median) for layer, norms in all_rows if norms is not None]
    if len(medians) > 1:
        (first, at_first), (last, at_last) = medians[0], medians[-1]
        largest = max(medians, key=lambda pair: pair[1])
        sentence = (
            f"Over all rows it goes from {number(at_first)} at {split_name(first)} to "
            f"{number(at_last)} at {split_name(last)}"
        )
        if largest[0] != last:
            sentence += f", and is largest at {split_name(largest[0])} ({number(largest[1])})"
        sentences.append(sentence + ".")
    elif medians:
        sentences.append(f"At {split_name(medians[0][0])} it is {number(medians[0][1])}.")
    middle, norms_there = drawn[len(drawn) // 2]
    kinds = [norms for norms in norms_there if norms.kind != "all"]
    if len(kinds) > 1:
        each = in_list([f"{number(n.spread.median)} of {n.kind} tokens" for n in kinds])
        sentences.append(f"At {split_name(middle)} it is {each}.")
    return " ".join(sentences)


def said_of_energy(layers: Sequence[LayerFigures]) -> str:
    """Say in how many dimensions the energy of `x` lies, and where it jumps."""
    sinks = [figures.sinks for figures in layers if figures.sinks is not None]
    if not sinks:
        return "x is not in this data."
    sentences = [
        "Share of the energy of x (the sum of the squares of all its values) that lies in its 1, 4 "
        "and 16 largest dimensions."
    ]
    most = max(sinks, key=lambda each: each.top_shares[0])
    top = most.dimensions[0]
    sentences.append(
        f"It is most at {split_name(most.layer)}: dimension {top.dimension} alone holds "
        f"{share(top.share)}, and the {len(most.dimensions)} largest {share(most.top_shares[-1])}."
    )
    if top.positions:
        place, of_dimension = top.positions[0]
        sentences.append(
            f"{share(of_dimension)} of that dimension's energy is at position {place}"
            f"{_token_at(most, place)}."
        )
    if len(sinks) > 1:
        steps = [
            (after.top_shares[0] - before.top_shares[0], before, after)
            for before, after in pairwise(sinks)
        ]
        jump, before, after = max(steps, key=lambda step: step[0])
        if jump >= _JUMP:
            sentences.append(
                f"The jump is from {split_name(before.layer)} ({share(before.top_shares[0])}) to "
                f"{split_name(after.layer)} ({share(after.top_shares[0])}): there dimension "
                f"{after.dimensions[0].dimension} grows."
            )
    return " ".join(sentences)


def said_of_sinks(layers: Sequence[LayerFigures], n_rows: int) -> str:
    """Say which positions carry the energy of `x`.

    Args:
        n_rows: that were drawn.
    """
    sinks = [figures.sinks for figures in layers if figures.sinks is not None]
    if not sinks:
        return "x is not in this data."
    most = max(sinks, key=lambda each: each.positions[0].share)
    top = most.positions[0]
    sentences = [
        f"At {split_name(most.layer)} position {top.position}{_token_at(most, top.position)} holds "
        f"{share(top.share)} of the energy in {share(top.n_rows / n_rows)} of the rows: its mean "
        f"norm is {number(top.mean_norm)}, and the median of all rows {number(most.median_norm)}."
    ]
    with_outliers = [each for each in sinks if each.n_outliers]
    if with_outliers:
        worst = max(with_outliers, key=lambda each: each.outlier_share)
        sentences.append(
            f"Rows over ten times the median are in {len(with_outliers)} of {len(sinks)} layers; "
            f"at {split_name(worst.layer)} {worst.n_outliers} of {n_rows} are, with "
            f"{share(worst.outlier_share)} of the energy."
        )
    else:
        sentences.append("No row is over ten times as long as the median in any layer.")
    return " ".join(sentences)


def said_of_cosines(layers: Sequence[LayerFigures]) -> str:
    """Say how much one layer's `x` is like the next one's."""
    pairs = [
        (figures.cosine_to_next.median, figures.layer, figures.next_layer)
        for figures in layers
        if figures.cosine_to_next is not None and figures.next_layer is not None
    ]
    sentences = [
        "Cosine between x of a layer and of the next one, row by row: the median, and the middle "
        "90 % of the rows."
    ]
    if not pairs:
        return "There are no two layers whose x could be compared."
    if any(after != layer + 1 for _, layer, after in pairs):
        sentences.append("Next is the next layer that was drawn.")
    least, most = min(pairs), max(pairs)
    sentences.append(
        f"{split_name(least[1])} and {split_name(least[2])} are least alike ({least[0]:.2f})"
        + (
            f", {split_name(most[1])} and {split_name(most[2])} most ({most[0]:.2f})."
            if len(pairs) > 1
            else "."
        )
    )
    return " ".join(sentences)


def said_of_ridge(layers: Sequence[LayerFigures]) -> str:
    """Say how much of `mlp_out` a ridge regression on `x` explains."""
    fits = [(figures.layer, figures.ridge) for figures in layers if figures.ridge is not None]
    known = [(fit.explained, layer, fit) for layer, fit in fits if fit.explained is not None]
    if not fits:
        return "No layer has both x and mlp_out."
    if not known:
        return f"No ridge regression was tried: {fits[0][1].why_not}."
    (least, least_layer, fit), most = min(known, key=_first), max(known, key=_first)
    sentences = [
        "Share of the variance of mlp_out that a ridge regression on x of the same layer explains, "
        "on samples that it was not fitted to: what a transcoder must beat.",
        f"It is {share(least)} at {split_name(least_layer)}"
        + (
            f", where it is least, and {share(most[0])} at {split_name(most[1])}, where it is most."
            if len(known) > 1
            else "."
        ),
        f"At {split_name(least_layer)} it was fitted to {fit.n_train_rows} rows of "
        f"{fit.n_train_samples} samples and tried on {fit.n_held_out_rows} of "
        f"{fit.n_held_out_samples} others.",
    ]
    left_out = max(each.n_outliers for _, each in fits)
    if left_out:
        sentences.append(
            f"Rows over ten times the median are left out (at most {left_out} of a layer)."
        )
    return " ".join(sentences)


def said_of_patches(maps: Sequence[PatchMap]) -> str:
    """Say where on the pictures `x` is large."""
    n_rows, n_cols = len(maps[0].norms), len(maps[0].norms[0])
    middle = maps[len(maps) // 2]
    known = [
        (norm, row, col)
        for row, line in enumerate(middle.norms)
        for col, norm in enumerate(line)
        if norm is not None
    ]
    most, least = max(known), min(known)
    return (
        f"Mean norm of x at each patch of {middle.n_samples} pictures, a grid of {n_rows} × "
        f"{n_cols}; each map has colours of its own, from the 2nd to the 98th percentile of its "
        f"patches, dark to light; beneath are its least and its largest. At "
        f"{split_name(middle.layer)} it is largest in row {most[1]}, column {most[2]} "
        f"({number(most[0])}) and least in row {least[1]}, column {least[2]} ({number(least[0])}), "
        "counted from the top left."
    )


def _first(known: tuple[float, int, RidgeFit]) -> float:
    return known[0]


def _of_kind(norms: Sequence[KindNorms], kind: str) -> KindNorms | None:
    return next((each for each in norms if each.kind == kind), None)


def _token_at(sinks: LayerSinks, position: int) -> str:
    for each in sinks.positions:
        if each.position == position and each.token is not None:
            return f" ({token_name(each.token)}{f', {each.kind}' if each.kind else ''})"
    return ""
