"""What a capture store or a dataset is, as a short table."""

from __future__ import annotations

from pathlib import Path

from builder.folder.card import readable_size
from llava_amber_activations.formats.dataset_folder import ALL_LAYERS, DEFAULT_CONFIG
from llava_amber_activations.formats.layers import LayerWindow
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.sources.source import check_no_revision, open_source
from llava_amber_activations.store.layout import (
    is_finished,
    is_store,
    missing_chunks,
    read_recipe,
    recipe_chunks,
)
from llava_amber_activations.store.samples import read_samples


def info(source: str | Path, revision: str | None = None) -> list[tuple[str, str]]:
    """Describe a capture store, a dataset folder or a dataset on the Hub, as (name, value) pairs.

    Raises:
        ActivationsError: it is none of these.
    """
    path = Path(source)
    if path.is_dir() and is_store(path):
        check_no_revision(source, revision)
        return _store_info(path)
    return _dataset_info(source, revision)


def _store_info(store: Path) -> list[tuple[str, str]]:
    recipe = read_recipe(store)
    n_chunks = len(recipe_chunks(recipe))
    missing = len(missing_chunks(store, recipe))
    rows = "unknown until the capture is finished"
    if is_finished(store, recipe):
        rows = str(sum(record.n_rows for record in read_samples(store)))
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return [
        ("kind", "capture store"),
        *_recipe_info(recipe),
        ("layers", f"0 … {recipe.n_layers - 1}, width {recipe.hidden_size}"),
        ("dtype", recipe.store_dtype),
        ("chunks", f"{n_chunks - missing} of {n_chunks}"),
        ("samples", str(recipe.n_samples)),
        ("rows", rows),
        ("bytes", f"{size} ({readable_size(size)})"),
    ]


def _dataset_info(source: str | Path, revision: str | None) -> list[tuple[str, str]]:
    manifest = open_source(source, revision).manifest
    recipe = manifest.recipe
    lines = [
        ("kind", f"dataset, format {manifest.format_version}"),
        *_recipe_info(recipe),
        ("width", str(recipe.hidden_size)),
        ("dtype", manifest.dtype),
        ("samples", str(recipe.n_samples)),
        ("rows", str(manifest.n_rows)),
    ]
    if DEFAULT_CONFIG in manifest.configs or ALL_LAYERS in manifest.configs:
        window = LayerWindow(recipe.n_layers, manifest.n_targets)
        lines.append(("targets", _target_counts(window)))
    for config in manifest.configs:
        splits = manifest.splits(config)
        size = sum(manifest.bytes_of(paths) for paths in splits.values())
        names = list(splits)
        span = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        n_files = sum(len(paths) for paths in splits.values())
        lines.append(
            (f"config {config}", f"{span}: {n_files} files, {size} bytes ({readable_size(size)})")
        )
    total = manifest.bytes_of(list(manifest.files))
    lines.append(("bytes", f"{total} ({readable_size(total)})"))
    return lines


def _target_counts(window: LayerWindow) -> str:
    if not window.sources:
        return "none: no layer comes after the only one"
    ends = sorted({window.sources[0], window.sources[-1]})
    return " … ".join(f"{len(window.targets(layer))} for L{layer}" for layer in ends)


def _recipe_info(recipe: Recipe) -> list[tuple[str, str]]:
    fields = ("origin", "model", "revision", "x_site", "positions", "prompt", "benchmark")
    values = ((field, getattr(recipe, field)) for field in fields)
    return [(field, value.replace("\n", "\\n")) for field, value in values if value is not None]
