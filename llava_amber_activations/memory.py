"""Memory that is used again when nothing holds it any longer."""

from __future__ import annotations

import sys
import threading

import numpy as np
import numpy.typing as npt

# Larger arrays gain nothing: numpy asks for huge pages for them, of which they have few to touch.
_MOST_BYTES = 64 << 20
# The list's, the loop's, and the argument of getrefcount.
_REFERENCES_OF_UNUSED = 3


class RecycledMemory:
    """Arrays of the same few shapes, over and over.

    Otherwise the allocator may give an array's memory back and ask for it again every time, and
    touching new pages takes longer than copying into them. An array is used again when nothing
    refers to it, nor to a tensor or a view of it. As much is kept as was in use at once.
    """

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[np.floating]] = []
        self._lock = threading.Lock()

    def empty(
        self, shape: tuple[int, ...], dtype: np.dtype[np.floating]
    ) -> npt.NDArray[np.floating]:
        """Return an array of anything."""
        with self._lock:
            for array in self._arrays:
                if (
                    array.shape == shape
                    and array.dtype == dtype
                    and sys.getrefcount(array) == _REFERENCES_OF_UNUSED
                ):
                    return array
            array = np.empty(shape, dtype)
            if array.nbytes <= _MOST_BYTES:
                self._arrays.append(array)
            return array
