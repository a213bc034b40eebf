"""How far two computations of the same vector may lie apart."""

from __future__ import annotations

import torch

# Relative to a vector's norm: batches of other shapes and other devices round differently, in the
# precision that the model computes in.
_TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


def tolerance(dtype: str) -> float:
    """Return the largest relative error that a recipe's `dtype` explains."""
    return _TOLERANCES[dtype]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of what was expected."""
    exact = expected.double()
    norm = exact.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((found.double() - exact).norm() / norm)
