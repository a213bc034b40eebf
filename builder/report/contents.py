"""What the page says of the dataset as a whole: what it is, its sizes, how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builder.drawn.rows import DrawnRows
from builder.folder.card import config_sizes
from builder.folder.provenance import benchmarks_of, model_of, public_recipe, said_of_list
from builder.report.browser_data import Browsed
from builder.report.number_words import in_list
from builder.report.thumbnails import cuts
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    CLT_FEATURES,
    DEFAULT_CONFIG,
    Manifest,
)
from llava_amber_activations.formats.layers import LayerWindow, layers_text, split_name

_MOST_RANGES = 24
_SITES = {
    "resid_mid": "x is the residual stream that enters the MLP block, before its norm",
    "resid_pre": "x is the residual stream that enters the layer",
    "mlp_in": "x is what the MLP receives, after its norm",
}


def title(manifest: Manifest) -> str:
    """Return what the page is called: of which model, on what."""
    recipe = public_recipe(manifest.recipe)
    benchmarks = in_list([benchmark.name for benchmark in benchmarks_of(recipe)])
    kind = "Activations" if has_vectors(manifest) else "Transcoder features"
    on_what = f" on {benchmarks}" if benchmarks else ""
    return f"{kind} of {model_of(recipe).name}{on_what}"


def lede(manifest: Manifest) -> str:
    """Say in a sentence or two what the dataset is."""
    recipe = manifest.recipe
    # Of several sources, some may have no pictures.
    what = "pairs of a picture and a query" if recipe.sources is None else "samples"
    pairs = f"{recipe.n_samples:,} {what}"
    if not has_vectors(manifest):
        return f"What transcoders made of the residual stream, for {pairs}."
    return (
        f"{manifest.n_rows:,} token positions of {pairs}: for each the residual stream x and the "
        f"MLP outputs of {len(recipe.kept_layers)} layers, each a vector of "
        f"{recipe.hidden_size:,} numbers."
    )


def has_vectors(manifest: Manifest) -> bool:
    """Whether the dataset holds vectors of layers."""
    return ALL_LAYERS in manifest.configs or DEFAULT_CONFIG in manifest.configs


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return what one asks first."""
    recipe = public_recipe(manifest.recipe)
    positions = recipe.positions or "not known"
    if recipe.sample_positions is not None:
        positions += f", {recipe.sample_positions} drawn of each sample"
    layers = str(recipe.n_layers)
    if recipe.layers is not None:
        layers = f"{layers_text(recipe.layers)} of {layers}"
    return [
        ("model", recipe.model or "not known"),
        ("queries", recipe.benchmark or "not known"),
        ("positions", positions),
        ("x is read at", recipe.x_site or "not known"),
        ("samples, rows", f"{recipe.n_samples:,}, {manifest.n_rows:,}"),
        ("layers, width", f"{layers}, {recipe.hidden_size:,}"),
        ("numbers are", manifest.dtype),
        ("size", readable_size(manifest.bytes_of(list(manifest.files)))),
        ("format", manifest.format_version),
    ]


def recipe_table(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the whole recipe, as the card has it."""
    recipe = public_recipe(manifest.recipe)
    return [
        (name, _value(name, value, recipe.why_none(name)))
        for name, value in recipe.to_json().items()
    ]


def sizes(manifest: Manifest) -> list[dict[str, str]]:
    """Return a line for each config, as the card has it."""
    return [
        {
            "name": line["name"],
            "splits": line["splits"],
            "rows": f"{line['rows']:,}",
            "files": str(line["files"]),
            "size": readable_size(line["bytes"]),
        }
        for line in config_sizes(manifest)
    ]


def code(manifest: Manifest, name: str) -> str:
    """Return how the dataset is loaded, as Python."""
    layers = manifest.layers(DEFAULT_CONFIG)
    if not has_vectors(manifest):
        split = split_name(manifest.layers(CLT_FEATURES)[0])
        return (
            "from datasets import load_dataset\n\n"
            f'load_dataset("{name}", "clt_features", split="{split}")'
        )
    lines = ["from llava_amber_activations import Activations", "", f'acts = Activations("{name}")']
    window = LayerWindow(manifest.recipe.n_layers, manifest.n_targets)
    there = layers or window.whole_sources(manifest.recipe.kept_layers)
    if there:
        layer = there[min(5, len(there) - 1)]
        lines += [
            f"for batch in acts.batches(layer={layer}, batch_size=4096, shuffle=True):",
            '    batch["x"], batch["targets"]  '
            f"# [B, {manifest.recipe.hidden_size}], "
            f"[B, {len(window.targets(layer))}, {manifest.recipe.hidden_size}]",
        ]
    if layers:
        split = split_name(layers[0])
        loaded = f'"{split}", split="{split}"'
    else:
        loaded = '"all_layers", split="train"'
    lines += ["", "from datasets import load_dataset", "", f'load_dataset("{name}", {loaded})']
    return "\n".join(lines)


def said_of_drawing(manifest: Manifest) -> str:
    """Say where `x` and the targets are read."""
    site = manifest.recipe.x_site
    first = _SITES.get(site or "", "Where x was read is not known")
    sentence = f"{first}." if site is None else f"{first} ({site})."
    if targets_of(manifest) is None:
        return f"{sentence} mlp_out is what the MLP returns. No layer comes after the only one."
    return (
        f"{sentence} The targets of layer L are what the MLPs of the layers {targets_of(manifest)} "
        "return, before it is added to the stream; none is padded."
    )


def targets_of(manifest: Manifest) -> str | None:
    """Name the layers whose MLP outputs are the targets of L; None where no layer has any."""
    if manifest.recipe.n_layers < 2:
        return None
    count = min(manifest.n_targets, manifest.recipe.n_layers - 1)
    return "L+1" if count == 1 else f"L+1 … L+{count}"


def said_of_drawn(rows: DrawnRows | None, manifest: Manifest, fetched: int, *, on_hub: bool) -> str:
    """Say what was read for the page.

    Args:
        fetched: bytes that travelled from the Hub, if it is `on_hub`.
    """
    travelled = f" {readable_size(fetched)} travelled from the Hub for it." if on_hub else ""
    n_rows = manifest.n_rows
    if rows is None:
        return (
            "The dataset holds no vectors of layers, so that there is nothing to draw." + travelled
        )
    which = (
        f"All {n_rows:,} rows"
        if rows.are_all
        else f"{len(rows):,} of {n_rows:,} rows: all of {len(rows.samples)} samples "
        f"({_ranges([each.sample for each in rows.samples])}), which a seed chose"
    )
    are_all_layers = set(rows.layers) >= set(manifest.recipe.kept_layers)
    layers = "all layers" if are_all_layers else f"the layers {_ranges(rows.layers)}"
    return f"{which}, of {layers}: {readable_size(rows.n_bytes)} of vectors.{travelled}"


def said_of_browser(
    rows: DrawnRows, browsed: Browsed, n_pictures: int, processor: str | None, with_patches: bool
) -> str:
    """Say what the browser of samples shows, and what it cannot."""
    several = len(browsed.samples) > 1
    with_x = [layer for layer in rows.layers if rows.x(layer) is not None]
    are_all = len(browsed.layers) == len(with_x)
    layers = "in all of these layers" if are_all else f"in the layers {_ranges(browsed.layers)}"
    sentences = [
        f"{'All ' if len(browsed.samples) == rows.n_samples and several else ''}"
        f"{len(browsed.samples)} {'samples' if several else 'sample'}, "
        f"{layers}. "
        "Colours, from dark to light, are the norm of a row, by its logarithm, or the cosine "
        "of its x to that of a position which you choose; the scale goes from the 2nd to the 98th "
        "percentile of the sample's rows."
    ]
    if n_pictures and with_patches:
        sentences.append(
            f"The picture is cut around its middle to the patches' grid, as {processor} does."
            if cuts(processor)
            else "The picture is squeezed into the patches' grid: how the model's processor "
            "brought it there is not known."
        )
    if not n_pictures:
        sentences.append(
            "The pictures are not in this data: `llava-amber report --image-dir` shows them, and "
            "`build --embed-pictures` puts them into the data."
        )
    if not with_patches:
        sentences.append("No row is a patch of a picture, so that there is no heat map.")
    if rows.tokens is None:
        sentences.append("The tokens' texts are not in this data; they are called by number.")
    return " ".join(sentences)


def _value(name: str, value: Any, why_none: str) -> str:
    if value is None:
        return why_none
    if isinstance(value, list) and name != "layers":
        return said_of_list(name, value)
    if isinstance(value, dict):
        return in_list([f"{name} {version}" for name, version in value.items()])
    return str(value).replace("\n", "\\n")


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers with those that follow each other as 3–7; the first of many."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    more = "" if len(said) <= _MOST_RANGES else " …"
    return ", ".join(said[:_MOST_RANGES]) + more
