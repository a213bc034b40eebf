"""The norm before a layer's MLP: what the MLP receives, computed from the stream that it reads.

    rms          weight × r, where r = x / sqrt(mean(x²) + eps) in float32 is rounded first
    rms_offset   (1 + weight) × r in float32, rounded to the model's dtype
    layer_norm   weight × (x - mean(x)) / sqrt(variance(x) + eps) + bias, as torch has it

The operations, and where they round, are the models' own: LlamaRMSNorm and GemmaRMSNorm of
transformers (modeling_llama.py, modeling_gemma.py), and torch.nn.LayerNorm.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn.functional import layer_norm, rms_norm

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.parsing.checked_values import check_choice
from llava_amber_activations.vectors.finite import finite_rows

NormKind = Literal["rms", "rms_offset", "layer_norm"]
NORM_KINDS: tuple[str, ...] = get_args(NormKind)

# So many numbers torch computes in the thread that asks, and they stay in a core's cache: threads
# that read ahead are one a core already. Of larger tensors torch would share out each operation.
_AT_ONCE = 32_767
# And so many where torch may share them out.
_AT_ONCE_IN_PARALLEL = 2**20

# What a float type of a dataset may be made of, without a value that it cannot hold.
_HOLDS = {torch.float16: {"float16"}, torch.float32: {"float32", "bfloat16"}}


@dataclass(frozen=True, eq=False)
class Norm:
    """One layer's norm; `kind`, `eps`, `dtype`, `weight` [H] and `bias` [H] as in `Norms`."""

    layer: int
    kind: NormKind
    eps: float
    dtype: str
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def to(self, device: torch.device) -> Norm:
        """Return the same norm on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return dataclasses.replace(self, weight=self.weight.to(device), bias=bias)


@dataclass(frozen=True, eq=False)
class Norms:
    """The norms of all layers of a model.

    Attributes:
        kind: of every layer, as the module's docstring has them.
        eps: of each layer.
        dtype: what the model computes in: `float16`, `bfloat16` or `float32`.
        weight: [n_layers, H] of that dtype.
        bias: the same, or None where the norm has none.

    Raises:
        ActivationsError: sizes or dtypes do not fit together, or a number is not finite.
    """

    kind: NormKind
    eps: tuple[float, ...]
    dtype: str
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, NORM_KINDS)
        shape = (len(self.eps), *self.weight.shape[1:])
        tensors = {"weight": self.weight, "bias": self.bias}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.ndim != 2 or tensor.shape != shape or tensor.dtype != torch_dtype(self.dtype):
                raise ActivationsError(
                    f"{name} must be {self.dtype} [{len(self.eps)}, H], as there is an eps for "
                    f"each layer, got {tensor.dtype} {list(tensor.shape)}"
                )
            if not tensor.isfinite().all():
                raise ActivationsError(f"{name} holds values that are not finite")
        if not all(math.isfinite(eps) and eps >= 0 for eps in self.eps):
            raise ActivationsError(f"eps must be 0 or more in every layer, got {list(self.eps)}")
        if self.bias is not None and self.kind != "layer_norm":
            raise ActivationsError(f"a norm of the kind {self.kind} has no bias")

    def layer(self, number: int) -> Norm:
        """Return the norm of one layer."""
        bias = None if self.bias is None else self.bias[number]
        return Norm(number, self.kind, self.eps[number], self.dtype, self.weight[number], bias)


def apply_norm(
    x: torch.Tensor, norm: Norm, out: torch.Tensor | None = None, *, in_parallel: bool = False
) -> torch.Tensor:
    """Return what a layer's MLP receives, `mlp_in`, where its norm is given `x`.

    The arithmetic is done in the model's dtype, whatever the dtype of `x`, and the result rounded
    to that of `x`. Where `x` holds what the model had, the result is what the model made of it: on
    a CPU bit by bit, elsewhere up to the order in which a row is summed. Where `x` was rounded when
    it was stored, the result is that of the rounded `x`.

    Args:
        x: [rows, H] of any float dtype, on the norm's device; `resid_mid` of the layer.
        norm: of the layer.
        out: [rows, H] to write the result to; may be `x` itself.
        in_parallel: compute with all of torch's threads. Without, where others decode meanwhile:
            they would wait for each other.

    Raises:
        ActivationsError: the dtype of the result cannot hold one of its values.
    """
    result = torch.empty_like(x) if out is None else out
    dtype = torch_dtype(norm.dtype)
    compute = _KINDS[norm.kind]
    at_once = _AT_ONCE_IN_PARALLEL if in_parallel else _AT_ONCE
    step = max(1, at_once // max(1, x.shape[1]))
    if x.device.type != "cpu":
        step = max(1, len(x))
    for start in range(0, len(x), step):
        some = x[start : start + step].to(dtype)
        result[start : start + step] = compute(some, norm)
    # What the model had is finite; what is rounded may not fit any more.
    if norm.dtype not in _HOLDS.get(result.dtype, ()) and not _is_finite(result):
        raise ActivationsError(
            f"mlp_in of layer {norm.layer}, which the model computes in {norm.dtype}, has values "
            f"that {str(result.dtype).removeprefix('torch.')} cannot hold, in which this data is: "
            "read resid_mid, or capture with --store-dtype float32"
        )
    return result


def _is_finite(vectors: torch.Tensor) -> bool:
    if vectors.device.type == "cpu":
        return bool(finite_rows(vectors).all())
    return bool(vectors.isfinite().all())


def _normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return r, computed in float32 and rounded to the dtype of `x`."""
    if x.device.type == "cpu":
        # There it is `_step_by_step` in one call: threads that read ahead wait less for each other.
        return rms_norm(x.to(torch.float32), x.shape[-1:], eps=eps).to(x.dtype)
    return _step_by_step(x, eps)


def _step_by_step(x: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    return (wide * torch.rsqrt(variance + eps)).to(x.dtype)


def _rms(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return norm.weight * _normalised(x, norm.eps)


def _rms_offset(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    r = _normalised(x.to(torch.float32), norm.eps)
    return (r * (1.0 + norm.weight.to(torch.float32))).to(x.dtype)


def _layer_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


_KINDS = {"rms": _rms, "rms_offset": _rms_offset, "layer_norm": _layer_norm}
