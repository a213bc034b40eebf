"""How far two computations of the same vectors may lie apart.

Batches of other shapes, the reuse of a prefix, other kernels and other devices round differently,
in the precision that the model computes in. How much, was measured on 2026-11-24 on a model with
real residual streams: SmolLM2-135M-Instruct (30 layers, 576 wide; its 4-bit weights, expanded) as
the language model of a LLaVA with a small random picture tower, 8 queries on 8 photographs, all 746
positions, resid_mid and mlp_out of every layer, torch 2.13 on an AMD EPYC. The error of a vector is
the norm of the difference over the norm of what was expected; `rms` is the root mean square over
all vectors, `worst` the largest.

    what was compared                          float32            float16            bfloat16
                                             rms     worst      rms     worst      rms     worst
    batches of 1 and of 8                   3.1e-7  3.4e-6     6.6e-4  8.0e-3     4.9e-3  4.2e-2
    prefix reused and not                   5.0e-7  4.0e-6     1.1e-3   1.8e-2     8.0e-3   6.0e-2
    eager and fused attention               1.4e-6  1.5e-5     3.1e-3  3.8e-2     2.6e-2  3.0e-1
    torch's own and oneDNN's products       1.6e-6  1.2e-5        0       0       2.0e-2  1.4e-1
    pictures convolved in TF32              5.1e-4  3.6e-3
    float32                                                    3.2e-3  2.8e-2     2.8e-2  3.5e-1

A single vector of bfloat16 may thus be a third of itself away from what other kernels make of it
(an MLP output whose terms nearly cancel), while all of them together stay within a fortieth. So
both are bounded, at two to three times what was seen. Convolving pictures in TF32, which a GPU
does in float32 unless told otherwise, was computed by rounding what enters the convolution; nothing
was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """Largest relative errors that rounding explains.

    Attributes:
        rms: root mean square of the errors of all vectors that are compared.
        worst: error of any one of them.
    """

    rms: float
    worst: float


_TOLERANCES = {
    "float32": Tolerance(rms=1e-3, worst=1e-2),
    "float16": Tolerance(rms=1e-2, worst=1e-1),
    "bfloat16": Tolerance(rms=6e-2, worst=6e-1),
}


def tolerance(dtype: str) -> Tolerance:
    """Return the relative errors that a recipe's `dtype` explains."""
    return _TOLERANCES[dtype]


def relative_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return each vector's norm of the difference over the norm of what was expected.

    Args:
        found, expected: [..., H], any float dtypes.

    Returns:
        float64 [...]; infinite where either vector has a value that is not finite.
    """
    exact = expected.double()
    norm = exact.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    errors = (found.double() - exact).norm(dim=-1) / norm
    return torch.where(errors.isfinite(), errors, torch.inf)


def root_mean_square(errors: torch.Tensor) -> float:
    """Return the root mean square of errors; infinite where one is."""
    return float(errors.square().mean().sqrt())
