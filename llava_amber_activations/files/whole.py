"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llava_amber_activations.files.leftovers import partial_path
from llava_amber_activations.files.write_errors import errno_of_writing, write_error, write_errors


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()
_NUMBERS = re.compile(r"(?<=\[)\n\s*-?\d+(,\n\s*-?\d+)*\n\s*(?=\])")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is fsynced and renamed to `path`.

    After a failure nothing is left behind; after a kill, a hidden file that `sweep` knows. Writers
    that race for one file do not meet: the last one to finish is the one that stays.

    Raises:
        ActivationsError: the file cannot be written, whatever the writer made of the reason.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        try:
            yield partial
        except Exception as error:
            number = errno_of_writing(error, partial)
            if number is None:
                raise
            raise write_error(path, number) from error
        with write_errors(path):
            # Some writers make files private; others on a shared disk must read it.
            partial.chmod(0o666 & ~_UMASK)
            sync(partial)
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    # Before format 1.1 a kill left this name, which no sweep can tell to be a dead process's.
    with suppress(OSError):
        path.with_name(f".{path.name}.partial").unlink()
    with write_errors(path.parent):
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `json_text` has it, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as indented JSON for people to read, lists of whole numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # No string holds a line's end as it is.
    return _NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]).strip(), text) + "\n"
