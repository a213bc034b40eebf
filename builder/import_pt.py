"""Making a dataset folder of a folder of `.pt` files, of either layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.asked.files_to_take import check_pt_folder
from builder.asked.new_place import check_figures, check_free
from builder.build import DEFAULT_SHARD_SIZE
from builder.contents.parts import PartedContents
from builder.folder.new_folder import finish_folder, new_folder
from builder.pt.export_note import EXPORT_FILE, ExportNote, read_note
from builder.pt.layers_folder import LayersFolder, scan_layers
from builder.pt.layers_layout import is_layers_layout
from builder.pt.samples_folder import SamplesFolder, scan_samples
from builder.samples.write import write_counted_samples
from builder.shards.plan import parse_shard_size
from builder.shards.side_by_side import write_side_by_side
from builder.shards.tasks import (
    ShardTask,
    plan_all_layers,
    plan_features,
    plan_layer,
    plan_moments,
)
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dataset_folder import Manifest
from llava_amber_activations.formats.recipe import Recipe

_UNKNOWN = (
    "The .pt files do not say which picture, query or token a row was: `id` repeats `sample`, "
    "`image` and `kind` are empty, `position` counts the sample's rows, and `token_id`, "
    "`patch_row` and `patch_col` are -1."
)


def import_pt(
    folder: Path,
    dataset: Path,
    *,
    n_layers: int | None = None,
    first_target: int | None = None,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    num_proc: int = 1,
) -> Manifest:
    """Import a folder of the `layers` or the `samples` layout into a new dataset folder.

    The `layers` layout becomes the default config, and `all_layers` too where every layer is
    there; the `samples` layout becomes `clt_features`. What has to be assumed is in the manifest's
    warnings.

    Args:
        n_layers: decoder layers of the model. If None: as `export` noted them; in a folder of
            another's, the fewest that the files allow.
        first_target: 1 where a layer's first target is the next layer's MLP output, 0 where it is
            the layer's own. If None: as `export` noted it; in a folder of another's, 1.
        num_proc: shards written at once, by threads; up to four where there are cores for it.

    Raises:
        ActivationsError: the folder is of neither layout, a file of it cannot be read or would
            execute code, or its files do not fit together, or do not fit the arguments; or, for the
            `layers` layout, the extra `figures` is not installed.
    """
    check_free(dataset)
    shard_bytes = parse_shard_size(max_shard_size)
    if n_layers is not None and n_layers < 1:
        raise ActivationsError(f"n_layers must be at least 1, got {n_layers}")
    check_pt_folder(folder)
    note = read_note(folder)
    if note is not None:
        n_layers = _agreed(folder, "n_layers", n_layers, note.recipe.n_layers)
    if is_layers_layout(folder):
        check_figures()
        if note is not None:
            first_target = _agreed(folder, "first_target", first_target, note.first_target)
        return _import_layers(folder, dataset, note, n_layers, first_target, shard_bytes, num_proc)
    if first_target is not None:
        raise ActivationsError(
            f"{folder} holds sample files, which have no targets: leave first_target out"
        )
    return _import_samples(folder, dataset, note, n_layers, shard_bytes, num_proc)


def _agreed(folder: Path, what: str, given: int | None, noted: int) -> int:
    """Return what `export` noted down about a folder, which an argument may only repeat."""
    if given is not None and given != noted:
        raise ActivationsError(
            f"{folder} was exported with {what}={noted}, as its {EXPORT_FILE} says, and not "
            f"{given}: leave {what} out"
        )
    return noted


def _import_layers(
    folder: Path,
    dataset: Path,
    note: ExportNote | None,
    n_layers: int | None,
    first_target: int | None,
    shard_bytes: int,
    num_proc: int,
) -> Manifest:
    contents = scan_layers(folder, n_layers, 1 if first_target is None else first_target)
    rows = contents.rows_of_samples
    tasks = []
    for layer in contents.split_layers:
        tasks += plan_layer(contents, rows, layer, contents.targets(layer), shard_bytes)
    plan = plan_all_layers if contents.is_complete else plan_moments
    tasks += plan(contents, rows, contents.all_names, shard_bytes)
    warnings = [
        _UNKNOWN,
        *_not_carried(note),
        *_assumed(contents, n_layers, first_target),
        *_left_out(contents),
        *_unchecked(contents.n_unchecked),
    ]
    recipe = _recipe(note, "layers", contents, contents.n_targets, len(rows))
    return _write(dataset, contents, tasks, num_proc, recipe, dict(enumerate(rows)), warnings)


def _not_carried(note: ExportNote | None) -> list[str]:
    """Say which columns the exported dataset had, of which the files know nothing."""
    if note is None or not note.recipe.extra_columns:
        return []
    names = ", ".join(f"`{name}`" for name in note.recipe.extra_columns)
    return [f"The dataset that the files were exported from had {names}: they hold vectors alone."]


def _assumed(contents: LayersFolder, n_layers: int | None, first_target: int | None) -> list[str]:
    """Say what the import takes for granted, because neither a person nor a file says it."""
    said = []
    if n_layers is None:
        said.append(
            f"Taken for layers of a model of {contents.n_layers} decoder layers, the fewest that "
            "the files allow: if the model has more, import with --n-layers."
        )
    if first_target is None:
        said.append(
            "A layer's first target is taken for the MLP output of the next layer: if it is the "
            "layer's own, import with --first-target 0."
        )
    return said


def _left_out(contents: LayersFolder) -> list[str]:
    """Say which vectors of the model, or of the files, are not in the dataset."""
    if not contents.is_complete:
        said = ["Some layers are missing, so there is no `all_layers` config."]
        last = contents.n_layers - 1
        if last in contents.files:
            said.append(f"The x of layer {last} is left out: no layer after it has an MLP output.")
        return said
    if contents.first_target == 0:
        return []
    return [
        f"`all_layers` holds what the .pt files did: {contents.all_names[0]} … "
        f"{contents.all_names[-1]}, without the x of the last layer and mlp_out of layer 0."
    ]


def _unchecked(n_files: int) -> list[str]:
    if not n_files:
        return []
    return [
        f"{n_files} of the .pt files have no checksums (they are of torch before 1.6, or were "
        "saved without): a value that was damaged since cannot be told from a right one."
    ]


def _import_samples(
    folder: Path,
    dataset: Path,
    note: ExportNote | None,
    n_layers: int | None,
    shard_bytes: int,
    num_proc: int,
) -> Manifest:
    contents = scan_samples(folder, n_layers)
    rows = contents.rows_of_samples
    tasks: list[ShardTask] = []
    for layer in contents.layers:
        tasks += plan_features(contents, rows, layer, shard_bytes)
    recipe = _recipe(note, "samples", contents, 1, len(rows))
    warnings = _unchecked(contents.n_unchecked)
    counts = dict(zip(contents.files, rows, strict=True))
    return _write(dataset, contents, tasks, num_proc, recipe, counts, warnings)


def _write(
    dataset: Path,
    contents: PartedContents,
    tasks: Sequence[ShardTask],
    num_proc: int,
    recipe: Recipe,
    rows_of_samples: Mapping[int, int],
    warnings: Sequence[str],
) -> Manifest:
    with new_folder(dataset) as partial:
        files, moments = write_side_by_side(partial, contents, tasks, num_proc, "import")
        files |= write_counted_samples(partial, rows_of_samples, recipe.n_layers)
        manifest = Manifest(
            recipe=recipe,
            dtype=contents.dtype,
            n_targets=recipe.n_targets,
            n_rows=sum(rows_of_samples.values()),
            files=files,
            warnings=tuple(warnings),
        )
        return finish_folder(partial, manifest, moments)


def _recipe(
    note: ExportNote | None,
    layout: str,
    contents: LayersFolder | SamplesFolder,
    n_targets: int,
    n_samples: int,
) -> Recipe:
    """Return what is known of how the data was made: all of it where `export` wrote the folder."""
    known = Recipe(
        n_layers=contents.n_layers,
        hidden_size=contents.width,
        n_targets=n_targets,
        store_dtype=contents.store_dtype,
        n_samples=n_samples,
    )
    if note is not None:
        sizes = {
            field: getattr(known, field)
            for field in ("n_layers", "hidden_size", "n_targets", "store_dtype", "n_samples")
        }
        known = dataclasses.replace(note.recipe, **sizes)
    origin = f"import of .pt files ({layout} layout)"
    return dataclasses.replace(known, origin=origin, extra_columns=())
