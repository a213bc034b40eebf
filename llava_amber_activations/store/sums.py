"""`SHA256SUMS` of a capture store: checksums of its small files, as `sha256sum` writes them.

`sha256sum --check SHA256SUMS`, run in the store, checks them without this project. Chunks and
features are not in it: each carries its own checksums, and nothing large is read twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.files.whole import write_text
from llava_amber_activations.formats.dataset_folder import NORMS_FILE

RECIPE_FILE = "capture.json"
SAMPLES_FILE = "samples.jsonl"
RESPONSES_FILE = "responses.json"
SUMS_FILE = "SHA256SUMS"

_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<name>[\w.]+)", re.ASCII)
_AGAIN = "run the same capture command again to make it anew"


def sums_text(store: Path) -> str:
    """Return what SHA256SUMS of a store's files, as they are now, holds."""
    with read_errors(store):
        return "".join(f"{sha256_of(store / name)}  {name}\n" for name in _names(store))


def _names(store: Path) -> list[str]:
    optional = [name for name in (RESPONSES_FILE, NORMS_FILE) if (store / name).exists()]
    return [RECIPE_FILE, SAMPLES_FILE, *optional]


def write_sums(store: Path) -> None:
    """Write SHA256SUMS, the last file of a store."""
    write_text(store / SUMS_FILE, sums_text(store))


def check_sums(store: Path) -> None:
    """Check a store's small files by SHA256SUMS, where it is there.

    Raises:
        ActivationsError: one is missing or is not as it was written, or SHA256SUMS is not.
    """
    path = store / SUMS_FILE
    if not path.exists():
        return
    with read_errors(path):
        lines = path.read_bytes().decode("ascii", errors="replace").split("\n")
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    sums = [(match["name"], match["sha256"]) for match in found if match]
    if lines[-1] or None in found or [name for name, _ in sums] != _names(store):
        raise ActivationsError(
            f"{path} is damaged, or not of the files beside it: delete it, and {_AGAIN}"
        )
    for name, sha256 in sums:
        with read_errors(store / name):
            differs = sha256_of(store / name) != sha256
        if differs:
            remedy = "copy it again" if name == RECIPE_FILE else f"delete it, and {_AGAIN}"
            raise ActivationsError(
                f"{store / name} is not as it was written (its SHA-256 is not the one in "
                f"{SUMS_FILE}): {remedy}"
            )
