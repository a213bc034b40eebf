"""The processes of one launch that build one folder together (`torchrun`, `accelerate launch`).

.DATASET.unfinished/ranks/
  launch        names the launch; by rank 0, which alone holds the lock and finishes the folder
  00001         the same name; by rank 1, once all shards that are its own are finished

They meet in files alone, so that nothing bounds how long one may take, and hosts need to share no
more than the disk. A shard is the same bytes whoever makes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import folder_lock_path, remove
from llava_amber_activations.files.locks import clear_dead
from llava_amber_activations.files.whole import write_text
from llava_amber_activations.formats.dataset_folder import MANIFEST_FILE

_LAUNCH_FILE = "launch"
_POLL_SECONDS = 0.1
# To begin, rank 0 reads the store's headers, and nothing more.
_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Ranks:
    """Which process of a launch this is, of how many."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ActivationsError(
                f"RANK must be 0 to WORLD_SIZE - 1, got {self.rank} of {self.world_size}"
            )

    @property
    def is_first(self) -> bool:
        """Whether it is the one that finishes the folder and says what there is to say."""
        return self.rank == 0


def ranks_of_launch() -> Ranks:
    """Return what the launcher says of this process; the only one where there is none.

    Raises:
        ActivationsError: what it says makes no sense.
    """
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal()):
        raise ActivationsError(f"RANK={rank} and WORLD_SIZE={world_size} are not both numbers")
    return Ranks(int(rank), int(world_size))


def begin_launch(folder: Path) -> str:
    """Let the other ranks begin, and return the launch's name.

    Args:
        folder: that the ranks meet in; what another launch left in it is removed.
    """
    remove(folder)
    name = uuid4().hex
    write_text(folder / _LAUNCH_FILE, name)
    return name


def wait_for_others(folder: Path, launch: str, ranks: Ranks) -> None:
    """Wait until every other rank has finished its shards."""
    waiting = [_rank_path(folder, rank) for rank in range(1, ranks.world_size)]
    while waiting := [path for path in waiting if _read(path) != launch]:
        time.sleep(_POLL_SECONDS)


def take_part(
    folder: Path, ranks: Ranks, can_begin: Callable[[], bool], make: Callable[[], None]
) -> None:
    """Make this rank's shards in the launch that rank 0 has begun, and say that they are finished.

    Args:
        can_begin: whether what rank 0 builds is what this rank would.
        make: makes them.

    Raises:
        ActivationsError: rank 0 does not begin.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        launch = _read(folder / _LAUNCH_FILE)
        if launch is not None and can_begin():
            make()
            until = time.monotonic() + _PATIENCE_SECONDS
            # Perhaps it was one that had been killed, and rank 0 has begun its own meanwhile.
            if _read(folder / _LAUNCH_FILE) == launch:
                write_text(_rank_path(folder, ranks.rank), launch)
                if _read(folder / _LAUNCH_FILE) == launch:
                    return
        if time.monotonic() > until:
            raise ActivationsError(
                f"rank {ranks.rank} of {ranks.world_size} waits for rank 0, which does not begin: "
                "start all ranks with the same command, on hosts that share the dataset's disk"
            )
        time.sleep(_POLL_SECONDS)


def wait_for_folder(dataset: Path) -> None:
    """Wait until rank 0 has made the folder of what all ranks have made.

    Raises:
        ActivationsError: it has ended before.
    """
    lock = folder_lock_path(dataset.resolve())
    while not clear_dead(lock):
        if (dataset / MANIFEST_FILE).is_file():
            return
        time.sleep(_POLL_SECONDS)
    if not (dataset / MANIFEST_FILE).is_file():
        raise ActivationsError(
            f"rank 0 ended before {dataset} was whole: what is finished is kept, and the same "
            "command makes the rest"
        )


def _rank_path(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
