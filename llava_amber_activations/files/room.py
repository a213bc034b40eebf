"""Whether a disk has room for what is about to be written to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from llava_amber_activations.console.sizes import readable_size
from llava_amber_activations.errors import ActivationsError


def check_room(place: Path, n_bytes: float, what: str) -> None:
    """Check that the disk of a file or folder, there or not yet, has so many bytes free.

    Args:
        n_bytes: the least that will be written, however well it compresses.
        what: will be written; a part of the error's sentence.

    Raises:
        ActivationsError: it has fewer.
    """
    there = place.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < n_bytes:
        raise ActivationsError(
            f"{what} takes {readable_size(n_bytes)} or more, and the disk of {place} has "
            f"{readable_size(free)} free: make room there, or give another place"
        )
