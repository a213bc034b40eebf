"""A disk for HDF5 that never fails it.

Where a write fails, HDF5 keeps the file open, tries again when the process ends, and crashes it
(2.0.0 of h5py 3.16, a full file system). It is told that all went well instead, and this process is
told what went wrong.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Hdf5Disk(io.RawIOBase):
    """A file as h5py's `fileobj` driver takes it: https://docs.h5py.org/en/stable/high/file.html.

    Args:
        file: unbuffered, so that a write has happened or failed when it returns.
        path: of the file.
    """

    def __init__(self, file: io.FileIO, path: Path) -> None:
        super().__init__()
        self._file = file
        self._path = path
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error that there was.

        Raises:
            OSError: it names the file.
        """
        if self._error is not None:
            number, reason = self._error.errno, self._error.strerror
            raise OSError(number, reason, str(self._path)) from self._error

    def write(self, content: Any) -> int:
        """Write all of a memoryview of bytes, unless something failed before."""
        self._try(lambda: self._write_all(content))
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        """Make the file so large."""
        self._try(lambda: self._file.truncate(size))
        return self.tell() if size is None else size

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def readinto(self, buffer: Any) -> int:
        """Read what was written into a memoryview of bytes."""
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def _write_all(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content) or 0 :]

    def _try(self, deed: Callable[[], object]) -> None:
        if self._error is None:
            try:
                deed()
            except OSError as error:
                self._error = error
