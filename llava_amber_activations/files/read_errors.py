"""What goes wrong while a file is read, said with the file's name and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llava_amber_activations.errors import ActivationsError

_MOST_SAID = 200


def reason_of(error: BaseException) -> str:
    """Return what a library says of a damaged file, short enough for a sentence.

    Some quote the damage itself, however long it is, or explain over several lines.
    """
    said = str(error).strip().partition("\n")[0].strip() or type(error).__name__
    return said if len(said) <= _MOST_SAID else said[:_MOST_SAID] + "…"


@contextmanager
def read_errors(name: object, remedy: str = "") -> Iterator[None]:
    """Turn an error of the system inside the block into one sentence.

    Args:
        name: the file, or what of it is read.
        remedy: what to do where the error itself does not say it.

    Raises:
        ActivationsError: in the place of any OSError.
    """
    try:
        yield
    except FileNotFoundError:
        raise ActivationsError(f"{name} is missing{f': {remedy}' if remedy else ''}") from None
    except PermissionError:
        raise ActivationsError(f"{name} may not be read by you: change its permissions") from None
    except IsADirectoryError:
        raise ActivationsError(f"{name} is a folder, and should be a file") from None
    except OSError as error:
        reason = error.strerror or str(error)
        advice = remedy or "check the disk, and copy the file again"
        raise ActivationsError(f"{name} cannot be read ({reason}): {advice}") from None
