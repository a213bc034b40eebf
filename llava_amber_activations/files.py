"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_READ_BYTES = 1 << 20


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()


@contextmanager
def written_whole(path: Path, tag: str = "") -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is fsynced and renamed to `path`.

    After a failure nothing is left behind; after a kill, a hidden `.NAME.partial` that the next
    writer of the same file replaces. Writers that may race for one file pass a `tag` of their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{tag}.partial")
    try:
        yield partial
        # Some writers (safetensors) make files private; others on a shared disk must read these.
        partial.chmod(0o666 & ~_UMASK)
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
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
    with written_whole(path, tag=f".{os.getpid()}") as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_empty_or_missing(path: Path) -> bool:
    """Whether a folder could be created at `path` without touching anything that is there."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))
