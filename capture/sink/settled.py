"""What of a recipe is settled before the model is loaded, and a store begun with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from capture.samples.benchmark import Benchmark, benchmark_name
from capture.settings import CaptureSettings
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.formats.version import FORMAT_VERSION
from llava_amber_activations.store.layout import is_store, read_recipe, write_recipe

# Of several query files and datasets, as of several columns, a recipe has one text.
BETWEEN_NAMES = " + "


def asked_fields(settings: CaptureSettings, n_layers: int) -> dict[str, Any]:
    """Return the fields of a recipe that are what was asked for, and nothing else.

    Args:
        n_layers: of the model. All of them, named one by one, are as if none were.
    """
    asked = settings.benchmarks
    columns = dict.fromkeys(each.answer_column for each in asked if each.answer_column)
    is_whole = settings.layers == tuple(range(n_layers))
    return {
        "model": settings.model,
        "x_site": settings.x_site,
        "layers": None if is_whole else settings.layers,
        "positions": settings.positions,
        "sample_positions": settings.sample_positions,
        "seed": None if settings.sample_positions is None else settings.seed,
        "always": settings.always,
        "max_new_tokens": settings.response_tokens,
        "pool": None if settings.transcoders is None else settings.pool,
        "n_targets": settings.n_targets,
        "benchmark": BETWEEN_NAMES.join(map(benchmark_name, asked)),
        "answer_column": BETWEEN_NAMES.join(columns) or None,
        "system": settings.system,
        "chunk_samples": settings.samples_per_chunk,
        "batch_size": settings.batch_size,
        "auto_batch_size": settings.batch_size is None,
        "compile": settings.compile,
    }


def benchmark_fields(benchmark: Benchmark) -> dict[str, Any]:
    """Return the fields of a recipe that the samples decide."""
    return {
        "queries_sha256": benchmark.queries_sha256,
        "dataset_revision": benchmark.dataset_revision,
        "n_samples": len(benchmark.queries),
        "sources": benchmark.sources,
    }


def check_begun(settings: CaptureSettings, benchmark: Benchmark) -> None:
    """Check that a store was begun with what is asked for, as far as no model is needed for that.

    Raises:
        ActivationsError: it was begun otherwise; names what differs.
    """
    store = settings.output_dir
    if not is_store(store):
        return
    begun = read_recipe(store)
    found = {
        **asked_fields(settings, begun.n_layers),
        **benchmark_fields(benchmark),
    }
    # As the recipe's file has them.
    if found["layers"] is not None:
        found["layers"] = list(found["layers"])
    if found["sources"] is not None:
        found["sources"] = list(map(asdict, found["sources"]))
    if settings.dtype is not None:
        found["dtype"] = settings.dtype
    if settings.store_dtype or settings.dtype:
        found["store_dtype"] = settings.store_dtype or settings.dtype
    _check_format(store, begun)
    _check_same(store, begun, found)


def adopt_recipe(store: Path, recipe: Recipe) -> None:
    """Begin a store with `recipe`, or check that it was begun with the same one.

    Raises:
        ActivationsError: the store was made by another recipe, or in another format; names what
            differs.
    """
    if is_store(store):
        begun = read_recipe(store)
        _check_format(store, begun)
        _check_same(store, begun, recipe.to_json())
    # What else the file of a begun store holds, no capture of this format wrote: it is to get no
    # checksum.
    write_recipe(store, recipe)


def _check_format(store: Path, begun: Recipe) -> None:
    if begun.format_version != FORMAT_VERSION:
        raise ActivationsError(
            f"{store} was captured in format {begun.format_version}, and this release captures in "
            f"format {FORMAT_VERSION}: one store cannot mix the two, in which pictures are "
            "read otherwise and not all that decides the values is recorded. It stays readable; "
            "capture into a new folder"
        )


def _check_same(store: Path, begun: Recipe, found: Mapping[str, Any]) -> None:
    was = begun.to_json()
    # A store that was begun before recipes had it does not say where its vectors were taken.
    if was["sites"] is None:
        del was["sites"]
    differences = [
        f"{name} ({was[name]!r}, not {found[name]!r})"
        for name in was
        if name in found and was[name] != found[name]
    ]
    if differences:
        raise ActivationsError(
            f"{store} was captured with another recipe: {', '.join(differences)}. "
            "Capture into a new folder, or with the options that this one was begun with"
        )
