"""A dataset folder that appears whole or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.card import write_card
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import is_empty_or_missing, sha256_of, sync, write_json
from llava_amber_activations.folder import CARD_FILE, MANIFEST_FILE, FileEntry, Manifest


def check_free(dataset: Path) -> None:
    """Check that nothing is in the way of a new folder.

    Raises:
        ActivationsError: there is something at `dataset`.
    """
    if not is_empty_or_missing(dataset):
        raise ActivationsError(f"{dataset} already holds something: give a new or an empty folder")


@contextmanager
def new_folder(dataset: Path) -> Iterator[Path]:
    """Yield a folder beside `dataset` to fill; on success it is renamed to `dataset`.

    After an error nothing is left; after a kill, a hidden `.NAME.partial` that the next build of
    the same folder clears away.

    Raises:
        ActivationsError: there is something at `dataset`.
    """
    check_free(dataset)
    dataset = dataset.absolute()
    partial = dataset.with_name(f".{dataset.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(dataset)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(dataset.parent)


def finish_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Write the card, and then the manifest, of a folder whose other files are there."""
    write_card(folder, manifest)
    card = folder / CARD_FILE
    entry = FileEntry(sha256_of(card), card.stat().st_size)
    manifest = dataclasses.replace(manifest, files={**manifest.files, CARD_FILE: entry})
    write_json(folder / MANIFEST_FILE, manifest.to_json())
    return manifest
