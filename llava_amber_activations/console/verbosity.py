"""How much is said beside results and errors: by this project, and by the libraries below it."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from enum import IntEnum

# Each library reads its own once, when it is imported. What a user has set stays.
_QUIET_LIBRARIES = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Verbosity(IntEnum):
    """How much is said on stderr.

    Attributes:
        QUIET: errors, and warnings that ask for a decision.
        NORMAL: progress and notes of this project, too.
        VERBOSE: the bars and warnings of the libraries, too.
    """

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_level = Verbosity.NORMAL


def verbosity() -> Verbosity:
    """Return how much is said by this process."""
    return _level


def set_verbosity(level: Verbosity) -> None:
    """Choose how much is said by this process."""
    global _level  # noqa: PLW0603  # one process has one stderr
    _level = level


def note(text: str) -> None:
    """Say a sentence on stderr, unless this process is quiet."""
    if _level > Verbosity.QUIET:
        # One write, which no line of another process or thread divides.
        sys.stderr.write((over_line(text) if sys.stderr.isatty() else text) + "\n")
        sys.stderr.flush()


def over_line(text: str) -> str:
    """Return what writes a text over the line that a terminal's cursor is on."""
    return "\r" + text.ljust(shutil.get_terminal_size().columns - 1)


def hush_libraries() -> None:
    """Have libraries that are not imported yet say errors alone, unless this process is verbose.

    Warnings stay where Python was told what to do with them (-W, PYTHONWARNINGS).
    """
    if _level is Verbosity.VERBOSE:
        return
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
