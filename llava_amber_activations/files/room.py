"""Whether a disk has room for what is about to be written to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError


def check_room(place: Path, n_bytes: float, what: str, *, force: bool | None = None) -> None:
    """Check that the disk of a file or folder, there or not yet, has so many bytes free.

    Args:
        n_bytes: the least that will be written, however well it compresses.
        what: will be written; a part of the error's sentence.
        force: only say that it has fewer; None where the command has no such option.

    Raises:
        ActivationsError: it has fewer.
    """
    free = free_bytes(place)
    if free >= n_bytes:
        return
    short = (
        f"{what} takes {readable_size(n_bytes)} or more, and the disk of {place} has "
        f"{readable_size(free)} free"
    )
    if force:
        note(f"{short}: going on all the same")
        return
    remedy = "make room there, or give another place"
    raise ActivationsError(
        f"{short}: {remedy}" + ("" if force is None else " (--force goes on all the same)")
    )


def free_bytes(place: Path) -> int:
    """Return how many bytes the disk of a file or folder, there or not yet, has free."""
    there = place.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free
