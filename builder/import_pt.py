"""Making a dataset folder of a folder of `.pt` files, of either layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder.build import DEFAULT_SHARD_SIZE
from builder.layers_layout import is_layers_layout, scan_layers
from builder.new_folder import check_figures, check_free, finish_folder, new_folder
from builder.plan import parse_size
from builder.pt_files import EXPORT_FILE
from builder.samples_layout import is_samples_layout, scan_samples
from builder.shards import (
    Contents,
    ShardTask,
    plan_all_layers,
    plan_features,
    plan_layer,
    plan_moments,
    write_shards,
)
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.folder import Manifest
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.typed_json import parse_json_object

_UNKNOWN = (
    "The .pt files do not say which picture, query or token a row was: `id` repeats `sample`, "
    "`image` and `kind` are empty, `position` counts the sample's rows, and `token_id`, "
    "`patch_row` and `patch_col` are -1."
)


def import_pt(
    folder: Path,
    dataset: Path,
    *,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    num_proc: int = 1,
) -> Manifest:
    """Import a folder of the `layers` or the `samples` layout into a new dataset folder.

    The `layers` layout becomes the default config, and `all_layers` too where every layer is
    there; the `samples` layout becomes `clt_features`.

    Raises:
        ActivationsError: the folder is of neither layout, a file of it cannot be read or would
            execute code, or its files do not fit together; or, for the `layers` layout, the extra
            `figures` is not installed.
    """
    check_free(dataset)
    shard_bytes = parse_size(max_shard_size)
    if not folder.is_dir():
        raise ActivationsError(f"the folder {folder} does not exist")
    if is_layers_layout(folder):
        check_figures()
        return _import_layers(folder, dataset, shard_bytes, num_proc)
    if is_samples_layout(folder):
        return _import_samples(folder, dataset, shard_bytes, num_proc)
    raise ActivationsError(
        f"{folder} holds neither L*/batch_*_x.pt nor sample_*.pt: it is of no layout that is known"
    )


def is_pt_folder(folder: Path) -> bool:
    """Whether a folder holds `.pt` files of either layout."""
    return folder.is_dir() and (is_layers_layout(folder) or is_samples_layout(folder))


def _import_layers(folder: Path, dataset: Path, shard_bytes: int, num_proc: int) -> Manifest:
    exported = _exported(folder)
    if exported.get("first_target", 1) != 1:
        raise ActivationsError(
            f"{folder} was exported with first_target=0, and a layer's split holds the targets "
            "from the next layer on: export it with --first-target 1, and import that"
        )
    known_layers = exported.get("recipe", {}).get("n_layers", 0)
    contents = scan_layers(folder, known_layers)
    rows = contents.rows_of_samples
    tasks = []
    for layer in contents.layers:
        tasks += plan_layer(contents, rows, layer, contents.targets(layer), shard_bytes)
    plan = plan_all_layers if contents.is_complete else plan_moments
    tasks += plan(contents, rows, contents.all_names, shard_bytes)
    warnings = [_UNKNOWN]
    if contents.is_complete:
        warnings.append(
            f"`all_layers` holds what the .pt files did: {contents.all_names[0]} … "
            f"{contents.all_names[-1]}, without the x of the last layer and mlp_out of layer 0."
        )
    else:
        warnings.append("Some layers are missing, so there is no `all_layers` config.")
    recipe = _recipe(folder, "layers", contents, contents.n_targets, len(rows))
    return _write(dataset, contents, tasks, num_proc, recipe, sum(rows), warnings)


def _import_samples(folder: Path, dataset: Path, shard_bytes: int, num_proc: int) -> Manifest:
    contents = scan_samples(folder)
    rows = contents.rows_of_samples
    tasks: list[ShardTask] = []
    for layer in contents.layers:
        tasks += plan_features(contents, rows, layer, shard_bytes)
    recipe = _recipe(folder, "samples", contents, 1, len(rows))
    return _write(dataset, contents, tasks, num_proc, recipe, sum(rows), [])


def _write(
    dataset: Path,
    contents: Contents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    recipe: Recipe,
    n_rows: int,
    warnings: Sequence[str],
) -> Manifest:
    with new_folder(dataset) as partial:
        files, moments = write_shards(partial, contents, tasks, num_proc, "import")
        manifest = Manifest(
            recipe=recipe,
            dtype=contents.dtype,
            n_targets=recipe.n_targets,
            n_rows=n_rows,
            files=files,
            warnings=tuple(warnings),
        )
        return finish_folder(partial, manifest, moments)


def _exported(folder: Path) -> dict[str, Any]:
    """Return what `export` wrote down about a folder; nothing where it is another's."""
    path = folder / EXPORT_FILE
    return parse_json_object(path.read_bytes(), path) if path.is_file() else {}


def _recipe(
    folder: Path, layout: str, contents: Contents, n_targets: int, n_samples: int
) -> Recipe:
    """Return what is known of how the data was made: all of it where `export` wrote the folder."""
    known = Recipe(
        n_layers=contents.n_layers,
        hidden_size=contents.width,
        n_targets=n_targets,
        store_dtype=contents.dtype,
        n_samples=n_samples,
    )
    exported = _exported(folder).get("recipe")
    if exported is not None:
        sizes = {
            field: getattr(known, field)
            for field in ("n_layers", "hidden_size", "n_targets", "store_dtype", "n_samples")
        }
        known = dataclasses.replace(Recipe.from_json(exported, folder / EXPORT_FILE), **sizes)
    return dataclasses.replace(known, origin=f"import of .pt files ({layout} layout)")
