"""Whether one vector is the sum of others, up to the rounding of the model's dtype."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from capture.model.structure.block import Scale

# Each addition and each product rounds by half a unit of its result; twice that is allowed.
_UNITS = 2.0

# What is made of a learned number before it multiplies a term.
_MADE_OF_PARAMETERS: dict[str, Callable[[float], float]] = {
    "{}": float,
    "tanh({})": math.tanh,
    "sigmoid({})": lambda value: 1 / (1 + math.exp(-value)),
}

Factor = float | torch.Tensor


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two are the same vectors, bit by bit; None is the same as nothing."""
    if a is None or b is None or a.shape != b.shape:
        return False
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def is_sum(total: torch.Tensor, *terms: tuple[Factor, torch.Tensor]) -> bool:
    """Whether `total` is the sum of factors times terms, each of which matters.

    Args:
        total: [rows, H].
        terms: a factor (a number or [H]) and its [rows, H], each.
    """
    first = slice(0, 1)
    return _adds_up(total, terms, first) and _adds_up(total, terms, slice(None))


def _adds_up(
    total: torch.Tensor, terms: tuple[tuple[Factor, torch.Tensor], ...], rows: slice
) -> bool:
    exact = total[rows].double()
    parts = [
        (factor.double() if isinstance(factor, torch.Tensor) else factor) * term[rows].double()
        for factor, term in terms
    ]
    dtypes = [total.dtype, *(term.dtype for _, term in terms)]
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    summed = torch.stack(parts).sum(0)
    allowed = _UNITS * eps * torch.stack([part.abs() for part in parts]).sum(0)
    if not bool(((exact - summed).abs() <= allowed).all()):
        return False
    # A term that is lost in the rounding of the others explains nothing.
    return all(bool((part.abs() > allowed).any()) for part in parts)


def declared_numbers(layer: nn.Module) -> list[Scale]:
    """Return the numbers that a layer holds itself, as attributes or learned, but 1 and 0."""
    scales = [
        Scale(value, f"{value:.6g}") for value in vars(layer).values() if isinstance(value, float)
    ]
    tensors = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers())}
    for name, tensor in tensors.items():
        if "." not in name and tensor.numel() == 1 and tensor.is_floating_point():
            for words, make in _MADE_OF_PARAMETERS.items():
                value = make(float(tensor))
                scales.append(Scale(value, words.format(name)))
    return [scale for scale in scales if scale.factor not in (0.0, 1.0)]
