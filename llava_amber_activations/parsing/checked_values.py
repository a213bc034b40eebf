"""Ranges and forms that values read from files, or given by a caller, must have."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PureWindowsPath

from llava_amber_activations.errors import ActivationsError

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_number(name: str, value: int | None, least: int, most: int) -> None:
    """Check that a number is in a range; None passes.

    Raises:
        ActivationsError: it is not.
    """
    if value is not None and not least <= value <= most:
        raise ActivationsError(f"{name} must be from {least} to {most}, got {value}")


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """Check that a word is one of those that are known; None passes.

    Raises:
        ActivationsError: it is not.
    """
    if value is not None and value not in choices:
        raise ActivationsError(f"{name} must be one of {', '.join(choices)}, got {value[:40]!r}")


def check_sha256(name: str, value: str | None) -> None:
    """Check that a text is a SHA-256, 64 hexadecimal digits in small letters; None passes.

    Raises:
        ActivationsError: it is not.
    """
    if value is not None and not _SHA256.fullmatch(value):
        raise ActivationsError(f"{name} must be a SHA-256 (64 hexadecimal digits): {value[:80]!r}")


def check_relative_path(path: str) -> None:
    """Check that a path with slashes stays inside the folder that it is relative to.

    Raises:
        ActivationsError: it may not, here or on any other system.
    """
    outside = (
        any(part in ("", ".", "..") for part in path.split("/"))
        or any(character in ":\\" or ord(character) < ord(" ") for character in path)
        or PureWindowsPath(path).anchor
    )
    if outside:
        raise ActivationsError(
            f"the path {path[:80]!r} is not one inside the folder, such as data/file.parquet"
        )
