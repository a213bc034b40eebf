"""Files that are told apart by a number in their names.

Scripts write `L5` or `L05`, `batch_0_x.pt` or `batch_000_x.pt`, `sample_0001.pt` or
`sample_00001.pt`: the number counts, and the file is opened by its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from llava_amber_activations.errors import ActivationsError


def matching(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """Return what a folder holds whose whole name matches, with the number that the name has."""
    found = ((name.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in found if match]


def by_number(folder: Path, found: Iterable[tuple[int, Path]]) -> dict[int, Path]:
    """Return files by their numbers, ascending.

    Raises:
        ActivationsError: two names are of one number.
    """
    files: dict[int, Path] = {}
    for number, path in sorted(found):
        if number in files:
            raise ActivationsError(
                f"{folder} has {files[number].name} and {path.name}, two names of one number: "
                "keep one of them"
            )
        files[number] = path
    return files
