"""What goes wrong while a file is read, said with the file's name and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llava_amber_activations.errors import ActivationsError


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
