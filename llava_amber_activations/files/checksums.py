"""Checksums of files: of one, and of many together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_MOST_THREADS = 8


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(folder: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the names and the checksums of files, in the order of their names.

    Files are read in several threads: hashing lets go of the interpreter.

    Args:
        folder: what names are relative to.
    """
    names = sorted(os.path.relpath(path, folder) for path in paths)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        checksums = pool.map(sha256_of, (folder / name for name in names))
        lines = [f"{name} {sha256}\n" for name, sha256 in zip(names, checksums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
