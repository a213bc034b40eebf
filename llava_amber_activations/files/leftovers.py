"""What a run that was killed leaves: how it is named, and clearing it away.

.NAME.HOST.PID.START.COUNT.partial     a file or a folder that was being written
.NAME.lock                             who writes here; see `locks`
.NAME.unfinished                       a folder whose finished parts the next run goes on with
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path

from llava_amber_activations.files.processes import Process, this_process

# What is added to a name has at most 64 + 7 + 24 characters and a count; file systems take 255.
_MOST_NAME_BYTES = 120
_PARTIAL = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>\d+)\.(?P<start>[0-9a-f]+)\.\d+\.partial"
)
# Before format 1.1. They name no process, so only who finds a folder with nothing else clears them.
_OLD_PARTIAL = re.compile(r"\.(capture|export)\.json\.\d+\.partial")
_LOCK = re.compile(r"\.(capture-rank-\d{5,}|export)\.lock")
_COUNT = itertools.count()


def capture_lock_path(store: Path, rank: int) -> Path:
    """Return the path of the lock of one rank that captures into a store."""
    return store / f".capture-rank-{rank:05d}.lock"


def export_lock_path(out: Path) -> Path:
    """Return the path of the lock of an export into a folder."""
    return out / ".export.lock"


def folder_lock_path(folder: Path) -> Path:
    """Return the path of the lock of a folder that is made beside its place."""
    return folder.with_name(f".{_cut(folder.name)}.lock")


def unfinished_path(folder: Path) -> Path:
    """Return the path of what is kept of a folder that is not whole yet."""
    return folder.with_name(f".{_cut(folder.name)}.unfinished")


def partial_path(path: Path) -> Path:
    """Return a path beside `path` that nobody else has, now or after this process has ended."""
    who = this_process()
    return path.with_name(
        f".{_cut(path.name)}.{who.host}.{who.pid}.{who.start}.{next(_COUNT)}.partial"
    )


def _cut(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_MOST_NAME_BYTES])


def sweep(folder: Path, name: str | None = None) -> None:
    """Clear away what dead processes of this host had begun to write in a folder.

    Args:
        name: clear only what was to become this; all that was begun if None.
    """
    for path in list(folder.glob(".*.partial")):
        begun = _PARTIAL.fullmatch(path.name)
        if begun is not None:
            wanted = name is None or begun["name"] == _cut(name)
            if wanted and Process(begun["host"], int(begun["pid"]), begun["start"]).is_dead():
                remove(path)
        elif name is None and _OLD_PARTIAL.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, there or not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_empty_or_missing(path: Path) -> bool:
    """Whether a folder could be made at `path` without touching anything but a run's leftovers."""
    try:
        with os.scandir(path) as entries:
            return all(map(_is_leftover, entries))
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    # An entry knows that it is a file without a second look, by which another rank may have
    # removed it.
    patterns = (_PARTIAL, _OLD_PARTIAL, _LOCK)
    is_ours = any(pattern.fullmatch(entry.name) for pattern in patterns)
    return is_ours and entry.is_file(follow_symlinks=False)
