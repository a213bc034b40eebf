"""The processes of one launch that build one folder together (`torchrun`, `accelerate launch`).

.DATASET.unfinished/ranks/
  launch        names the launch; by rank 0, which alone holds the lock and finishes the folder
  00001         the same name; by rank 1, once all shards that are its own are finished
  alive-00000   says that rank 0 runs, and so on for each rank that others wait for

They meet in files alone, so that nothing bounds how long one may take, and hosts need to share no
more than the disk. A shard is the same bytes whoever makes it. Who waits for a rank that was killed
ends, and what is finished is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import remove
from llava_amber_activations.files.pulse import POLL_SECONDS, Pulse, beating, look
from llava_amber_activations.files.whole import write_text
from llava_amber_activations.formats.dataset_folder import MANIFEST_FILE

_LAUNCH_FILE = "launch"
# To begin, a rank reads the store's headers, and nothing more.
_PATIENCE_SECONDS = 600.0
_KEPT = "what is finished is kept, and the same command makes the rest"
_REMEDY = "start all ranks with the same command, on hosts that share the dataset's disk"


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


@contextmanager
def begun_launch(folder: Path) -> Iterator[str]:
    """Let the other ranks begin, and yield the launch's name; an error inside ends it for all.

    Args:
        folder: that the ranks meet in; what another launch left in it is removed.
    """
    remove(folder)
    name = uuid4().hex
    with beating(_alive_path(folder, 0)):
        write_text(folder / _LAUNCH_FILE, name)
        try:
            yield name
        except BaseException:
            remove(folder / _LAUNCH_FILE)
            raise


def wait_for_others(folder: Path, launch: str, ranks: Ranks) -> None:
    """Wait until every other rank has finished its shards.

    Raises:
        ActivationsError: one has ended before, or does not begin.
    """
    waiting = {rank: Pulse() for rank in range(1, ranks.world_size)}
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        # Looked at first: one may finish and end in between.
        waiting = {rank: look(_alive_path(folder, rank), pulse) for rank, pulse in waiting.items()}
        done = [rank for rank in waiting if _read(_rank_path(folder, rank)) == launch]
        for rank in done:
            del waiting[rank]
        if not waiting:
            return
        for rank, pulse in waiting.items():
            if pulse.is_gone:
                raise ActivationsError(
                    f"rank {rank} of {ranks.world_size}{_process(pulse)} ended before its shards "
                    f"were finished: {_KEPT}"
                )
            if pulse.said is None and time.monotonic() > until:
                raise ActivationsError(
                    f"rank 0 waits for rank {rank} of {ranks.world_size}, which does not begin: "
                    f"{_REMEDY}"
                )
        time.sleep(POLL_SECONDS)


def take_part(
    folder: Path,
    dataset: Path,
    ranks: Ranks,
    can_begin: Callable[[], bool],
    make: Callable[[], None],
) -> None:
    """Make this rank's shards in the launch that rank 0 has begun, and wait for the folder.

    Args:
        folder: that the ranks meet in.
        dataset: that rank 0 makes of what all ranks have made.
        can_begin: whether what rank 0 builds is what this rank would.
        make: makes them.

    Raises:
        ActivationsError: rank 0 does not begin, or has ended before the folder was whole.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    made_in: str | None = None
    first = Pulse()
    while True:
        launch, first = _read(folder / _LAUNCH_FILE), look(_alive_path(folder, 0), first)
        # Last: rank 0 removes what it said when the folder is whole.
        if (dataset / MANIFEST_FILE).is_file():
            return
        # A launch that was killed is not gone on with: rank 0 may begin its own at any time.
        is_new = launch is not None and launch != made_in and first.is_alive
        if is_new and can_begin():
            with beating(_alive_path(folder, ranks.rank)):
                make()
            made_in = launch
            if launch is not None and _read(folder / _LAUNCH_FILE) == launch:
                write_text(_rank_path(folder, ranks.rank), launch)
        elif made_in is None:
            if time.monotonic() > until:
                raise ActivationsError(
                    f"rank {ranks.rank} of {ranks.world_size} waits for rank 0, which does not "
                    f"begin: {_REMEDY}"
                )
        elif launch is None or first.is_gone:
            raise ActivationsError(
                f"rank 0 of {ranks.world_size}{_process(first)} ended before {dataset} was whole: "
                f"{_KEPT}"
            )
        time.sleep(POLL_SECONDS)


def _process(pulse: Pulse) -> str:
    process = pulse.process
    return "" if process is None else f" (process {process.pid} on {process.host})"


def _rank_path(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}"


def _alive_path(folder: Path, rank: int) -> Path:
    return folder / f"alive-{rank:05d}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
