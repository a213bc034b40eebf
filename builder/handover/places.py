"""Where the files of a hand-over lie, before it is whole and afterwards.

OUT/export.json     what is exported
OUT/unfinished/     all other files, until the last chunk is there: no loader looks into it
OUT/SHA256SUMS      checksums of all files, as `sha256sum --check` reads them; written last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llava_amber_activations.files.leftovers import sweep
from llava_amber_activations.files.whole import sync, write_text
from llava_amber_activations.files.write_errors import write_errors

SUMS_FILE = "SHA256SUMS"
UNFINISHED = "unfinished"


def place_of(out: Path, name: str) -> Path:
    """Return where a file of the export lies, or is to be written.

    What was lost of a finished export is put back among the rest of its folder.
    """
    top, _, _ = name.partition("/")
    return out / name if (out / top).exists() else out / UNFINISHED / name


def is_finished(out: Path) -> bool:
    """Whether an export was whole when it was last left."""
    return (out / SUMS_FILE).is_file()


def begin_again(out: Path) -> None:
    """Clear away what dead runs left, and what says that the export is whole."""
    with write_errors(out / SUMS_FILE):
        (out / SUMS_FILE).unlink(missing_ok=True)
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        sweep(folder)


def put_in_place(out: Path, last: Sequence[str]) -> None:
    """Move everything out of `unfinished`, whole folders at a time, and `last` last.

    Loaders open the last one first, so that they find either nothing or all.

    Raises:
        ActivationsError: something cannot be moved.
    """
    unfinished = out / UNFINISHED
    if not unfinished.is_dir():
        return
    with write_errors(out):
        order = {name: number for number, name in enumerate(last)}
        for path in sorted(unfinished.iterdir(), key=lambda path: order.get(path.name, -1)):
            path.replace(out / path.name)
        unfinished.rmdir()
        sync(out)


def write_sums(out: Path, sums: Mapping[str, str]) -> None:
    """Write SHA256SUMS, the last file of an export: `sums` by the files' names."""
    lines = (f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
    write_text(out / SUMS_FILE, "".join(lines))
