"""The place of a new dataset folder: nothing in the way, held, figures that can be drawn, room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras
from llava_amber_activations.files.leftovers import (
    folder_lock_path,
    is_empty_or_missing,
    remove,
    sweep,
    unfinished_path,
)
from llava_amber_activations.files.locks import clear_dead, held
from llava_amber_activations.files.whole import sync
from llava_amber_activations.files.write_errors import write_errors

# Of vectors as they lie in memory, what compressed ones take at least. Measured: 0.85 of float16;
# 0.35 of float32 whose values are bfloat16's.
LEAST_SHARE = {"float16": 0.8, "float32": 0.3}
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def clear_leftovers(dataset: Path) -> None:
    """Clear away what dead runs left beside `dataset` and, where it is empty but for it, in it."""
    dataset = dataset.resolve()
    lock = folder_lock_path(dataset)
    clear_dead(lock)
    for name in (dataset.name, lock.name):
        sweep(dataset.parent, name)
    if is_empty_or_missing(dataset):
        sweep(dataset)


def check_free(dataset: Path) -> None:
    """Check that nothing is in the way of a new folder but what dead runs left, which is cleared.

    Raises:
        ActivationsError: there is something at `dataset`.
    """
    clear_leftovers(dataset)
    if dataset.exists() and (not dataset.is_dir() or any(dataset.iterdir())):
        raise ActivationsError(f"{dataset} already holds something: give a new or an empty folder")


@contextmanager
def held_place(dataset: Path) -> Iterator[Path]:
    """Hold the place of a new folder, and yield it; `take_place` then gives it the folder.

    Raises:
        LockHeldError: another process is making `dataset`.
        ActivationsError: there is something.
    """
    check_free(dataset)
    # Resolved, because a folder cannot be renamed to a link.
    dataset = dataset.resolve()
    with held(folder_lock_path(dataset), f"{dataset} is being made"):
        check_free(dataset)
        remove(dataset.with_name(f".{dataset.name}.partial"))  # as it was named before format 1.1
        yield dataset


def take_place(folder: Path, dataset: Path) -> None:
    """Rename a folder that is whole to its place.

    Raises:
        ActivationsError: it cannot be.
    """
    with write_errors(dataset):
        folder.replace(dataset)
    with write_errors(dataset.parent):
        sync(dataset.parent)


def bytes_kept(dataset: Path) -> int:
    """Return how many bytes of shards a build that was broken off has finished already."""
    kept = unfinished_path(dataset.resolve()).rglob("*.parquet")
    return sum(path.stat().st_size for path in kept)


def check_figures() -> None:
    """Check that figures can be drawn, before hours of work that end in them.

    Raises:
        ActivationsError: what draws them is not installed.
    """
    need_extras("a dataset folder has figures in its card; drawing them", "figures")
