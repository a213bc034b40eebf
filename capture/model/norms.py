"""Which norm of a known kind feeds a model's MLPs, proven on what the MLPs are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from capture.model.decoder import Decoder
from capture.model.structure.calls import first_tensor
from llava_amber_activations.formats.dtypes import torch_dtype
from llava_amber_activations.vectors.norms import NormKind, Norms, apply_norm

# What transformers and torch call it.
_EPS_NAMES = ("variance_epsilon", "eps", "epsilon")

# Units in the last place that two orders of summing a row, or a norm in one kernel, may lie apart.
# In half precision the sums are in float32, and r may round to its neighbour: one unit of it is up
# to two of its product with the weight.
_UNITS = {torch.float32: 8, torch.float16: 2, torch.bfloat16: 2}
# Of a value that is a small difference of large ones, the units are too small a measure: so much of
# the row's root mean square is a rounding of them.
_OF_ROW = 2.0**-20

# Rows of a pass that are looked at, the first one among them.
_MOST_ROWS = 256


def agree(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Whether what a norm gave is what an MLP received, up to rounding: a bool, on their device.

    Args:
        found, expected: [rows, H] of the model's dtype.
    """
    if found.dtype != expected.dtype or found.dtype not in _UNITS:
        return torch.zeros((), dtype=torch.bool, device=found.device)
    exact = expected.double()
    _, exponent = exact.frexp()
    unit = torch.ldexp(torch.full_like(exact, torch.finfo(found.dtype).eps), exponent - 1)
    rms = exact.square().mean(dim=-1, keepdim=True).sqrt()
    allowed = torch.maximum(_UNITS[found.dtype] * unit, _OF_ROW * rms)
    return ((found.double() - exact).abs() <= allowed).all()


@torch.inference_mode()
def find_norms(
    decoder: Decoder, seen: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]]
) -> Norms | None:
    """Find what every layer's norm computes, among the kinds that are known.

    Args:
        seen: of each layer, what its norm was given and what its MLP then received, [rows, H].

    Returns:
        The norms, on the CPU; None where no kind gives every MLP what it received, or where what
        reads the stream is no norm.
    """
    rows = {layer: (x, y) for layer, (x, y) in seen.items() if y is not None}
    if len(rows) < len(decoder.layers) or not all(block.normed for block in decoder.blocks):
        return None
    for norms in _candidates(decoder, rows[0][0].dtype):
        if all(_gives(norms, layer, x, expected) for layer, (x, expected) in rows.items()):
            return norms
    return None


def _gives(norms: Norms, layer: int, x: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(agree(apply_norm(x, norms.layer(layer).to(x.device)), expected))


def _candidates(decoder: Decoder, dtype: torch.dtype) -> list[Norms]:
    """Return what the norms may be, by the tensors and numbers that their modules hold."""
    modules = [decoder.site(layer, "resid_mid") for layer in range(len(decoder.layers))]
    eps = [_eps_of(module) for module in modules]
    weight, bias = (_stacked(modules, name, decoder.hidden_size) for name in ("weight", "bias"))
    names = {torch_dtype(name): name for name in ("float16", "bfloat16", "float32")}
    if weight is None or weight.dtype != dtype or dtype not in names or None in eps:
        return []
    if bias is None and any(getattr(module, "bias", None) is not None for module in modules):
        return []
    kinds: tuple[NormKind, ...] = ("rms", "rms_offset", "layer_norm")
    numbers = tuple(value for value in eps if value is not None)
    return [
        Norms(kind, numbers, names[dtype], weight, bias)
        for kind in (kinds if bias is None else kinds[-1:])
    ]


def _stacked(modules: list[nn.Module], name: str, width: int) -> torch.Tensor | None:
    """Return a tensor of every layer's norm, [n_layers, H]; None where they have none of that."""
    tensors = [getattr(module, name, None) for module in modules]
    found = [each.detach().cpu() for each in tensors if isinstance(each, torch.Tensor)]
    alike = {(tuple(each.shape), each.dtype) for each in found}
    if len(found) < len(modules) or len(alike) > 1 or found[0].shape != (width,):
        return None
    # A copy: the modules' own may be moved, and a file's must be contiguous.
    stacked = torch.stack(found)
    return stacked if bool(stacked.isfinite().all()) else None


def _eps_of(module: nn.Module) -> float | None:
    values = (getattr(module, name, None) for name in _EPS_NAMES)
    value = next((value for value in values if isinstance(value, float)), None)
    return value if value is not None and math.isfinite(value) and value >= 0 else None


class NormWitness:
    """Sees, in the first pass inside its block, whether the norms give what the MLPs receive.

    Args:
        norms: of the model; of None nothing is seen.
    """

    def __init__(self, decoder: Decoder, norms: Norms | None) -> None:
        self._decoder = decoder
        self._norms = norms
        self._given: dict[int, torch.Tensor] = {}
        self._seen: dict[int, torch.Tensor] = {}
        self._hooks = ExitStack()

    @property
    def agrees(self) -> bool | None:
        """Whether they do, in every layer; None where no pass was seen."""
        return all(map(bool, self._seen.values())) if self._seen else None

    def __enter__(self) -> NormWitness:
        for layer in range(len(self._decoder.layers) if self._norms is not None else 0):
            for module, look in (
                (self._decoder.site(layer, "resid_mid"), self._look_at_stream),
                (self._decoder.site(layer, "mlp_in"), self._look_at_mlp),
            ):
                hook = self._hook(layer, look)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.close()

    def _hook(
        self, layer: int, look: Callable[[int, torch.Tensor], None]
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer not in self._seen:
                look(layer, _some_rows(first_tensor(args, kwargs)))

        return hook

    def _look_at_stream(self, layer: int, rows: torch.Tensor) -> None:
        # A copy, which what computes in place leaves as it is.
        self._given[layer] = rows.clone()

    def _look_at_mlp(self, layer: int, rows: torch.Tensor) -> None:
        assert self._norms is not None
        norm = self._norms.layer(layer).to(rows.device)
        self._seen[layer] = agree(apply_norm(self._given.pop(layer), norm), rows)


def _some_rows(states: torch.Tensor) -> torch.Tensor:
    """Return some rows of [batch, T, H], evenly spread over them."""
    rows = states.reshape(-1, states.shape[-1])
    return rows[:: -(-len(rows) // _MOST_ROWS)]
