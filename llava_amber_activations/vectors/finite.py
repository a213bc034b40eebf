"""Which rows of vectors are finite, as fast as memory is read.

A float is infinite or NaN where its bits, without the sign, are at least infinity's. The largest
of a row's bits, taken as signed numbers, finds such a positive value, and taken as unsigned ones
such a negative value: two passes without a copy. `torch.isfinite` on a CPU makes several copies
and takes twenty times as long; `numpy.isfinite` is slow for float16.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
_SIGNED = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def finite_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Return of which rows of [rows, …] every value is finite: bool [rows].

    Args:
        vectors: on the CPU; float16, bfloat16 and float32 are fast.
    """
    if vectors.dtype not in _INFINITY:
        return torch.isfinite(vectors).flatten(1).all(dim=1)
    rows = vectors.reshape(len(vectors), math.prod(vectors.shape[1:])).contiguous()
    bits = rows.view(_SIGNED[vectors.dtype]).numpy()
    return torch.from_numpy(_below(bits, _INFINITY[vectors.dtype]))


def finite_slots(vectors: torch.Tensor) -> torch.Tensor:
    """Return of which rows of [n, rows, H] every value is finite: bool [n, rows].

    On the device of the vectors, of which no more than one [rows, H] is copied at once.
    """
    return torch.stack([slot.isfinite().all(dim=-1) for slot in vectors])


def finite_rows_of_array(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Return the same of an array, which need not be writable."""
    if vectors.dtype not in (np.float16, np.float32):
        finite: npt.NDArray[np.bool_] = np.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim)))
        return finite
    rows = np.ascontiguousarray(vectors.reshape(len(vectors), math.prod(vectors.shape[1:])))
    infinity = _INFINITY[torch.float16 if vectors.dtype == np.float16 else torch.float32]
    return _below(rows.view(f"i{vectors.itemsize}"), infinity)


def _below(bits: npt.NDArray[np.signedinteger[Any]], infinity: int) -> npt.NDArray[np.bool_]:
    sign = 1 << (8 * bits.itemsize - 1)
    unsigned = bits.view(f"u{bits.itemsize}")
    below: npt.NDArray[np.bool_] = (bits.max(axis=1) < infinity) & (
        unsigned.max(axis=1) < infinity + sign
    )
    return below
