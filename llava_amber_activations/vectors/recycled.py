"""Memory that is used again when nothing holds it any longer."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import numpy.typing as npt


def _references(buffers: list[npt.NDArray[np.uint8]]) -> list[int]:
    return [sys.getrefcount(buffer) for buffer in buffers]


# The list's, and those of looking: how many these are differs among versions of Python.
_REFERENCES_OF_UNUSED = _references([np.empty(0, np.uint8)])[0]


class RecycledMemory:
    """Arrays of about the same sizes, over and over.

    Otherwise the allocator may give an array's memory back and ask for it again every time, and
    touching new pages takes longer than copying into them. Memory is used again when nothing
    refers to the array that lay in it, nor to a tensor or a view of it; it is given back when it
    has become too small, or with this object. So what is kept is what was in use at once.
    """

    def __init__(self) -> None:
        self._buffers: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RecycledMemory], tuple[()]]:
        # Memory is of one process.
        return RecycledMemory, ()

    def empty(
        self, shape: tuple[int, ...], dtype: np.dtype[np.floating]
    ) -> npt.NDArray[np.floating]:
        """Return an array of anything."""
        n_bytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            buffer = self._unused(n_bytes)
            if buffer is None:
                buffer = np.empty(n_bytes, np.uint8)
                self._buffers.append(buffer)
            # Its base is the buffer, which counts as held as long as the array is.
            return buffer[:n_bytes].view(dtype).reshape(shape)

    def _unused(self, n_bytes: int) -> npt.NDArray[np.uint8] | None:
        """Return the smallest unused buffer that is large enough, or drop those that are not."""
        found, in_use = None, []
        references = _references(self._buffers)
        for buffer, held in zip(self._buffers, references, strict=True):
            if held > _REFERENCES_OF_UNUSED:
                in_use.append(buffer)
            elif buffer.nbytes >= n_bytes and (found is None or buffer.nbytes < found.nbytes):
                found = buffer
        if found is None:
            self._buffers = in_use
        return found
