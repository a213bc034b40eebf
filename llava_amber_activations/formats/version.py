"""The version of the formats: which one is written, and which are read.

A reader takes every minor version of its own major one; what it does not know it leaves alone.
"""

from __future__ import annotations

import re

from llava_amber_activations.errors import ActivationsError

FORMAT_VERSION = "1.1"

# Format 1.0 had no checksums of its small files, nor of headers.
_FIRST_SEALED_MINOR = 1
_VERSION = re.compile(r"(?P<major>[0-9]{1,4})(\.(?P<minor>[0-9]{1,4}))?")


def check_format_version(version: object, where: object) -> None:
    """Refuse data of a newer major format than this release reads.

    Raises:
        ActivationsError: the version is missing, malformed or of another major number.
    """
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    ours = int(FORMAT_VERSION.partition(".")[0])
    if match is None or int(match["major"]) < ours:
        raise ActivationsError(f"{where} names no format version: it is not a file of this project")
    if int(match["major"]) > ours:
        raise ActivationsError(
            f"{where} is of format {version}, and this release reads format {ours}.x: "
            f"install llava-amber-activations {match['major']}.0 or newer to read it"
        )


def has_seals(version: str) -> bool:
    """Whether files of a format version carry checksums of themselves.

    Args:
        version: one that `check_format_version` has passed.
    """
    return int(version.partition(".")[2] or 0) >= _FIRST_SEALED_MINOR
