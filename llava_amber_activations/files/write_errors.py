"""What the operating system says when something cannot be written, as a sentence for a user."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_amber_activations.errors import ActivationsError

_MAKE_ROOM = "make room there and run the same command again"
_ELSEWHERE = "give another place, or have it made writable, and run the same command again"
_WHAT_TO_DO = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "the file system, or `ulimit -f`, allows no file so large: write to another place",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EISDIR: "a folder has the name of this file: move it away, or write to another place",
    errno.ENOTEMPTY: "something is in its place: move it away, or write to another place",
    errno.EEXIST: "something else has its name: move it away, or write to another place",
    errno.ENOTDIR: "what should be a folder on the way to it is a file: give another place",
    errno.ENOENT: "it was taken away while it was written: run the same command again",
}
# Of these a reader never complains; the others count where the error names the file.
_ONLY_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_error(path: Path, number: int | None) -> ActivationsError:
    """Say that `path` cannot be written, and what to do; `number` is an errno."""
    if number is None:
        return ActivationsError(f"{path} cannot be written: {_MAKE_ROOM}")
    what_to_do = _WHAT_TO_DO.get(
        number, "see that the disk is sound and run the same command again"
    )
    return ActivationsError(f"{path} cannot be written ({os.strerror(number)}): {what_to_do}")


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn every OSError of a block that does nothing but write `path` into a sentence.

    Raises:
        ActivationsError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error.errno) from error


def errno_of_writing(error: BaseException, path: Path) -> int | None:
    """Return the errno if `error` came of writing `path`, in a block that may have read as well.

    Libraries wrap it: torch raises a RuntimeError while it handles the OSError, safetensors and
    others that are written in Rust only quote it.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ActivationsError):
        if isinstance(seen, OSError) and seen.errno is not None:
            names_it = seen.filename is not None and os.fspath(seen.filename) == str(path)
            if names_it or (seen.filename is None and seen.errno in _ONLY_WRITING):
                return seen.errno
        quoted = _RUST_ERROR.search(str(seen))
        if quoted and int(quoted[1]) in _ONLY_WRITING:
            return int(quoted[1])
        seen = seen.__cause__ or seen.__context__
    return None
