"""What a capture store or a dataset is: as a short table, and as JSON for a script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    DEFAULT_CONFIG,
    NORMS_FILE,
    Manifest,
)
from llava_amber_activations.formats.layers import LayerWindow, layers_text
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.sources.sites import readable_sites
from llava_amber_activations.sources.source import check_no_revision, open_source
from llava_amber_activations.store.layout import (
    is_finished,
    is_store,
    missing_chunks,
    read_recipe,
    recipe_chunks,
)
from llava_amber_activations.store.samples import read_samples

_SAID_OF_RECIPE = (
    *("origin", "model", "revision", "x_site", "positions", "sample_positions", "always"),
    *("max_new_tokens", "transcoders_sha256", "prompt", "benchmark"),
)


@dataclass(frozen=True)
class StoreInfo:
    """What a capture store holds.

    Attributes:
        recipe: of the store.
        n_chunks, n_chunks_made: chunks in all, and those that are there.
        n_rows: of the finished store; None before.
        n_bytes: of all its files.
        has_norms: whether its norms are there.
    """

    recipe: Recipe
    n_chunks: int
    n_chunks_made: int
    n_rows: int | None
    n_bytes: int
    has_norms: bool

    def table(self) -> list[tuple[str, str]]:
        """Return what a person wants to know, as (name, value) pairs."""
        recipe = self.recipe
        rows = "unknown until the capture is finished" if self.n_rows is None else str(self.n_rows)
        return [
            ("kind", "capture store"),
            *_recipe_table(recipe),
            *_mixed_table(recipe),
            *_sites_table(recipe, has_norms=self.has_norms),
            ("layers", f"{_layers(recipe)}, width {recipe.hidden_size}"),
            ("dtype", recipe.store_dtype),
            ("chunks", f"{self.n_chunks_made} of {self.n_chunks}"),
            ("samples", str(recipe.n_samples)),
            ("rows", rows),
            ("bytes", f"{self.n_bytes} ({readable_size(self.n_bytes)})"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object; numbers that are not known are null."""
        return {
            "kind": "capture store",
            "format_version": self.recipe.format_version,
            "finished": self.n_rows is not None,
            "dtype": self.recipe.store_dtype,
            "chunks": {"made": self.n_chunks_made, "total": self.n_chunks},
            "samples": self.recipe.n_samples,
            "rows": self.n_rows,
            "bytes": self.n_bytes,
            "x_sites": list(readable_sites(self.recipe, has_norms=self.has_norms)),
            "recipe": self.recipe.to_json(),
        }


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset folder, or a dataset on the Hub, holds: its manifest says it all."""

    manifest: Manifest

    @property
    def has_norms(self) -> bool:
        """Whether it holds the model's norms."""
        return NORMS_FILE in self.manifest.files

    def table(self) -> list[tuple[str, str]]:
        """Return what a person wants to know, as (name, value) pairs."""
        manifest = self.manifest
        recipe = manifest.recipe
        lines = [
            ("kind", f"dataset, format {manifest.format_version}"),
            *_recipe_table(recipe),
            *_mixed_table(recipe),
            *_sites_table(recipe, has_norms=self.has_norms),
            *([] if recipe.layers is None else [("layers", _layers(recipe))]),
            ("width", str(recipe.hidden_size)),
            ("dtype", manifest.dtype),
            ("samples", str(recipe.n_samples)),
            ("rows", str(manifest.n_rows)),
        ]
        if DEFAULT_CONFIG in manifest.configs or ALL_LAYERS in manifest.configs:
            window = LayerWindow(recipe.n_layers, manifest.n_targets)
            lines.append(("targets", _target_counts(window, recipe)))
        for config in manifest.all_configs:
            splits = manifest.splits(config)
            size = sum(manifest.bytes_of(paths) for paths in splits.values())
            names = list(splits)
            span = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
            n_files = sum(len(paths) for paths in splits.values())
            said = f"{span}: {n_files} files, {size} bytes ({readable_size(size)})"
            lines.append((f"config {config}", said))
        total = manifest.bytes_of(list(manifest.files))
        lines.append(("bytes", f"{total} ({readable_size(total)})"))
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        manifest = self.manifest
        return {
            "kind": "dataset",
            "format_version": manifest.format_version,
            "dtype": manifest.dtype,
            "samples": manifest.recipe.n_samples,
            "rows": manifest.n_rows,
            "n_targets": manifest.n_targets,
            "configs": {
                config: {
                    split: {
                        "files": len(paths),
                        "rows": manifest.rows_of(paths),
                        "bytes": manifest.bytes_of(paths),
                    }
                    for split, paths in manifest.splits(config).items()
                }
                for config in manifest.all_configs
            },
            "bytes": manifest.bytes_of(list(manifest.files)),
            "x_sites": list(readable_sites(manifest.recipe, has_norms=self.has_norms)),
            "warnings": list(manifest.warnings),
            "recipe": manifest.recipe.to_json(),
        }


def describe(source: str | Path, revision: str | None = None) -> StoreInfo | DatasetInfo:
    """Look at a capture store, a dataset folder or a dataset on the Hub.

    Raises:
        ActivationsError: it is none of these.
    """
    path = Path(source)
    if not (path.is_dir() and is_store(path)):
        return DatasetInfo(open_source(source, revision).manifest)
    check_no_revision(source, revision)
    recipe = read_recipe(path)
    n_rows = None
    if is_finished(path, recipe):
        n_rows = sum(record.n_rows for record in read_samples(path))
    n_chunks = len(recipe_chunks(recipe))
    return StoreInfo(
        recipe=recipe,
        n_chunks=n_chunks,
        n_chunks_made=n_chunks - len(missing_chunks(path, recipe)),
        n_rows=n_rows,
        n_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        has_norms=(path / NORMS_FILE).is_file(),
    )


def info(source: str | Path, revision: str | None = None) -> list[tuple[str, str]]:
    """Describe a capture store, a dataset folder or a dataset on the Hub, as (name, value) pairs.

    Raises:
        ActivationsError: it is none of these.
    """
    return describe(source, revision).table()


def _layers(recipe: Recipe) -> str:
    every = f"0 … {recipe.n_layers - 1}"
    return every if recipe.layers is None else f"{layers_text(recipe.layers)} of {every}"


def _target_counts(window: LayerWindow, recipe: Recipe) -> str:
    if not window.sources:
        return "none: no layer comes after the only one"
    sources = window.whole_sources(recipe.kept_layers)
    if not sources:
        return f"none of the layers has all {window.n_targets}"
    ends = sorted({sources[0], sources[-1]})
    return " … ".join(f"{len(window.targets(layer))} for L{layer}" for layer in ends)


def _sites_table(recipe: Recipe, *, has_norms: bool) -> list[tuple[str, str]]:
    """Say what the vectors are in the model, and at which sites more `x` can be read."""
    modules = [(f"{vector} is", said) for vector, said in (recipe.sites or {}).items()]
    own, *computed = readable_sites(recipe, has_norms=has_norms) or ("",)
    if not computed:
        return modules
    return [
        *modules,
        ("x can be read at", f"{own}, {', '.join(computed)} (computed by {NORMS_FILE})"),
    ]


def _mixed_table(recipe: Recipe) -> list[tuple[str, str]]:
    """Say what more is in the prompts and said of the rows, where there is more."""
    sources = [f"{source.name} ({source.n_samples} samples)" for source in recipe.sources or ()]
    said = {
        "sources": ", ".join(sources),
        "system": (recipe.system or "").replace("\n", "\\n"),
        "answers": recipe.answer_column or "",
        "more columns": ", ".join(recipe.extra_columns),
    }
    return [(name, value) for name, value in said.items() if value]


def _recipe_table(recipe: Recipe) -> list[tuple[str, str]]:
    values = ((field, getattr(recipe, field)) for field in _SAID_OF_RECIPE)
    return [
        (
            field.removesuffix("_sha256"),
            recipe.why_none(field) if value is None else str(value).replace("\n", "\\n"),
        )
        for field, value in values
    ]
