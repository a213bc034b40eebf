"""Lock files that say who writes somewhere, so that a second one can be told.

A lock appears with its content (a link to a file that is whole), or not at all: the file system
decides between two that come at once, on one host or on several. One whose process has died on
this host is taken over. `filelock` is not used, because a kill between its making of a lock file
and its writing into it leaves a lock that nobody ever breaks.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import partial_path
from llava_amber_activations.files.processes import Process, this_host, this_process
from llava_amber_activations.files.write_errors import write_errors

# Of file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_MOST_COMMAND_CHARACTERS = 100


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        process: that made it.
        since: when, as people read it.
        command: what was run.
        group: what the processes of one run have in common, and others have not.
    """

    process: Process
    since: str
    command: str
    group: str


class LockHeldError(ActivationsError):
    """Another process holds the lock at `path`; `holder` says who."""

    def __init__(self, path: Path, holder: Holder | None, what: str) -> None:
        self.path = path
        self.holder = holder
        super().__init__(_sentence(path, holder, what))


def _sentence(path: Path, holder: Holder | None, what: str) -> str:
    if holder is None:
        return (
            f"{what} by a process that its lock does not name: if nothing runs there any more, "
            f"delete {path}"
        )
    who = holder.process
    said = (
        f"{what} by process {who.pid} on {who.host} since {holder.since} ({holder.command}): wait "
        "until it is done, or give another folder"
    )
    if who.host != this_host():
        said += f"; if that process is gone, delete {path}"
    return said


@contextmanager
def held(path: Path, what: str, group: str = "") -> Iterator[None]:
    """Hold the lock at `path`, whose folder is made where there is none.

    Afterwards the lock is gone, and so are the folders that were made for it, if they are empty.

    Args:
        what: is being done by who holds it, such as "STORE is being captured into".

    Raises:
        LockHeldError: a process that may be alive holds it.
        ActivationsError: the lock cannot be written.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        _make(path, what, group)
        try:
            yield
        finally:
            holder = read_holder(path)
            if holder is not None and holder.process == this_process():
                with write_errors(path):
                    path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _make(path: Path, what: str, group: str) -> None:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_MOST_COMMAND_CHARACTERS]
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    record = json.dumps(dataclasses.asdict(Holder(this_process(), since, command, group)))
    while not _is_made(path, record):
        if not clear_dead(path):
            raise LockHeldError(path, read_holder(path), what)


def _is_made(path: Path, record: str) -> bool:
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    with write_errors(path):
        try:
            with partial.open("x", encoding="utf-8") as file:
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
            return _link(partial, path, record)
        except FileNotFoundError:
            # A folder that another process made for its own lock goes when that one is done.
            return False
        finally:
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path, record: str) -> bool:
    try:
        try:
            path.hardlink_to(partial)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("x", encoding="utf-8") as file:
                file.write(record)
    except FileExistsError:
        # NFS may make the link, lose the answer, and ask again (open(2), O_EXCL).
        return partial.stat().st_nlink > 1
    return True


def read_holder(path: Path) -> Holder | None:
    """Return who holds the lock at `path`; None where the file does not say."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return _holder(path.read_bytes())
    return None


def _holder(record: bytes) -> Holder:
    value = json.loads(record)
    texts = {name: str(value[name]) for name in ("since", "command", "group")}
    process = value["process"]
    return Holder(
        Process(str(process["host"]), int(process["pid"]), str(process["start"])), **texts
    )


def clear_dead(path: Path) -> bool:
    """Remove the lock at `path` if its process is dead; True where no lock is left of it.

    Of two processes that find it dead, only one removes it, and neither removes the lock that the
    other then makes: whoever removes it has the file system's own lock on that very file.
    """
    try:
        # NFS gives its lock only to those that opened the file to write.
        with path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
            with suppress(OSError):  # file systems without; then only the moment between is unsafe
                fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return True
            with suppress(ValueError, TypeError, KeyError):
                if _holder(file.read()).process.is_dead():
                    path.unlink()
                    return True
    except FileNotFoundError:
        return True
    except OSError as error:
        raise ActivationsError(f"the lock {path} cannot be read ({error.strerror})") from error
    return False
