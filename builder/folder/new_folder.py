"""A dataset folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.asked.new_place import held_place, take_place
from builder.drawn.card_look import look_at
from builder.folder.card import write_card
from builder.folder.statistics import statistics_of
from builder.folder.unfinished import check_nothing_kept
from builder.shards.vector_moments import VectorMoments
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.leftovers import partial_path, remove
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.files.write_errors import write_errors
from llava_amber_activations.formats.dataset_folder import (
    CARD_FILE,
    MANIFEST_FILE,
    NORMS_FILE,
    STATISTICS_FILE,
    FileEntry,
    Manifest,
)
from llava_amber_activations.sources.source import Source
from llava_amber_activations.sources.statistics_file import write_statistics
from llava_amber_activations.store.norms_file import write_norms
from llava_amber_activations.vectors.norms import Norms


@contextmanager
def new_folder(dataset: Path) -> Iterator[Path]:
    """Yield a folder beside `dataset` to fill; on success it is renamed to `dataset`.

    After an error nothing is left; after a kill, a hidden folder and a lock beside it that the
    next build of the same folder clears away.

    Raises:
        LockHeldError: another process is making `dataset`.
        ActivationsError: there is something at `dataset`, or a build of it was broken off, or it
            cannot be written.
    """
    with held_place(dataset) as dataset:
        check_nothing_kept(dataset)
        partial = partial_path(dataset)
        try:
            with write_errors(partial):
                partial.mkdir(parents=True)
            yield partial
            take_place(partial, dataset)
        except BaseException:
            remove(partial)
            raise


def finish_folder(
    folder: Path, manifest: Manifest, moments: dict[str, VectorMoments], norms: Norms | None = None
) -> Manifest:
    """Complete a folder whose Parquet files are there: norms, statistics, figures, card, manifest.

    Args:
        moments: of the vectors, by their names; none in a folder that holds only features.
        norms: of the model, where `mlp_in` can be computed from the folder's `x`.
    """
    if norms is not None:
        write_norms(folder, norms)
        manifest = _with_file(folder, manifest, NORMS_FILE)
    look = None
    if moments:
        recipe = manifest.recipe
        write_statistics(folder, statistics_of(moments, recipe.n_layers, recipe.hidden_size))
        manifest = _with_file(folder, manifest, STATISTICS_FILE)
        look = look_at(Source(str(folder), str(folder), manifest))
        # An extra, which folders without vectors do without.
        from builder.folder.figures import draw_figures

        for path in draw_figures(folder, moments, recipe.n_layers, look):
            manifest = _with_file(folder, manifest, path)
    write_card(folder, manifest, look)
    manifest = _with_file(folder, manifest, CARD_FILE)
    write_json(folder / MANIFEST_FILE, manifest.to_json())
    return manifest


def _with_file(folder: Path, manifest: Manifest, path: str) -> Manifest:
    entry = FileEntry(sha256_of(folder / path), (folder / path).stat().st_size)
    return dataclasses.replace(manifest, files={**manifest.files, path: entry})
