"""A dataset folder that is being built, and what of it outlives a kill.

.DATASET.unfinished/      beside DATASET, which appears whole or not at all
  build.json              what is built from what, how, and by which versions
  dataset/                the folder; renamed to DATASET in the end
  finished/               what is kept of each finished shard; see `builder.shards.finished`
  ranks/                  where processes of one launch meet; see `builder.folder.ranks`

Shards are gone on with by the same build alone: bytes of two would not make one data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from builder.asked.new_place import held_place, take_place
from builder.shards.finished import FinishedShards, n_finished
from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import remove, unfinished_path
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.files.write_errors import write_errors
from llava_amber_activations.formats.dataset_folder import BuiltFrom
from llava_amber_activations.formats.version import FORMAT_VERSION

_BUILD_FILE = "build.json"
_FOLDER, _FINISHED, _RANKS = "dataset", "finished", "ranks"
# What decides the bytes of a shard or of its moments, beside what it is made from.
_LIBRARIES = ("datasets", "numpy", "pyarrow", "llava-amber-activations")


@dataclass(frozen=True)
class Unfinished:
    """A folder that is being built.

    Attributes:
        folder: to fill.
        finished: its shards that are whole.
        ranks: folder in which the processes of a launch meet.
        n_kept: how many shards were finished before.
    """

    folder: Path
    finished: FinishedShards
    ranks: Path
    n_kept: int


def build_said(built_from: BuiltFrom, n_targets: int) -> dict[str, Any]:
    """Return all that decides the bytes of a build, as it stands in `build.json`."""
    return {
        "store": built_from.store_sha256,
        "configs": ",".join(built_from.configs),
        "n_targets": n_targets,
        "max_shard_size": built_from.max_shard_bytes,
        "format": FORMAT_VERSION,
        **{name: version(name) for name in _LIBRARIES},
    }


@contextmanager
def unfinished_folder(dataset: Path, said: dict[str, Any]) -> Iterator[Unfinished]:
    """Yield the folder of a build to go on with, or a new one; on success it becomes `dataset`.

    After an error, a kill or a Ctrl-C, the shards that are finished are kept for the next run.

    Args:
        said: what is built, by `build_said`.

    Raises:
        LockHeldError: another process is making `dataset`.
        ActivationsError: there is something at `dataset`, or what is kept beside it is of another
            build, or it cannot be written.
    """
    with held_place(dataset) as dataset:
        place = unfinished_path(dataset)
        _begin(place, said)
        begun = unfinished_at(dataset, said)
        folder, records = begun.folder, begun.finished.records
        try:
            with write_errors(folder):
                folder.mkdir(exist_ok=True)
            yield begun
            take_place(folder, dataset)
        except BaseException:
            if not n_finished(records):
                remove(place)
            raise
        # Last: before, it would all be made again after a kill in between.
        remove(place)


def unfinished_at(dataset: Path, said: dict[str, Any]) -> Unfinished:
    """Return the folder of a build that another rank has begun, or will."""
    place = unfinished_path(dataset.resolve())
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    records = place / _FINISHED
    finished = FinishedShards(records, key)
    return Unfinished(place / _FOLDER, finished, place / _RANKS, n_finished(records))


def is_begun(dataset: Path, said: dict[str, Any]) -> bool:
    """Whether what is being built is this, and not something else."""
    return _read(unfinished_path(dataset.resolve()) / _BUILD_FILE) == said


def kept_of(dataset: Path) -> tuple[Path, int]:
    """Return where finished shards of a folder that is not built yet are kept, and how many."""
    place = unfinished_path(dataset.resolve())
    return place, n_finished(place / _FINISHED)


def said_kept(dataset: Path) -> str | None:
    """Say what a build that was broken off keeps; None for nothing."""
    place, n_kept = kept_of(dataset)
    if not n_kept:
        return None
    return (
        f"{n_kept} finished shards of {dataset} are kept in {place}, and the same command makes "
        "the rest; to give it up, delete that folder"
    )


def check_nothing_kept(dataset: Path) -> None:
    """Check that no shards are kept beside a place where something else is to be made.

    Raises:
        ActivationsError: there are.
    """
    place, n_kept = kept_of(dataset)
    if n_kept:
        raise ActivationsError(
            f"a build of {dataset} was broken off, and its {n_kept} finished shards are kept: run "
            f"the same build again, or delete {place}"
        )


def clear_others(folder: Path, paths: set[str]) -> None:
    """Remove every file of a folder but those, by their paths relative to it."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in paths:
            path.unlink(missing_ok=True)


def _begin(place: Path, said: dict[str, Any]) -> None:
    """Begin an unfinished folder, or go on with the one that is there.

    Raises:
        ActivationsError: it is of another build, and something of it is finished.
    """
    before = _read(place / _BUILD_FILE)
    if before == said:
        return
    n_kept = n_finished(place / _FINISHED)
    if before is not None and n_kept:
        raise ActivationsError(
            f"{place} holds {n_kept} finished shards of a build {_other(before, said)}: run that "
            "one again to finish it, or delete the folder to begin anew"
        )
    remove(place)
    with write_errors(place):
        place.mkdir(parents=True)
    write_json(place / _BUILD_FILE, said)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what is built in an unfinished folder; None where it does not say."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _other(before: dict[str, Any], said: dict[str, Any]) -> str:
    """Say how another build differs from this one."""
    if before.get("store") != said["store"]:
        return "of another store"
    words = {
        "configs": "with --configs {}",
        "n_targets": "with --n-targets {}",
        "max_shard_size": "with --max-shard-size {}",
    }
    for name in said:
        if before.get(name) != said[name]:
            value = before.get(name)
            if name == "max_shard_size" and isinstance(value, int):
                value = readable_size(value)
            return words.get(name, f"by {name} {{}}").format(value)
    return "of a newer release"
