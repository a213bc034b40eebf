"""The place of a new dataset folder: nothing in the way, figures that can be drawn, room."""

from __future__ import annotations

from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.extras import need_extras
from llava_amber_activations.files.leftovers import (
    folder_lock_path,
    is_empty_or_missing,
    sweep,
    unfinished_path,
)
from llava_amber_activations.files.locks import clear_dead

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
