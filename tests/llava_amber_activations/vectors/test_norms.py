"""`apply_norm` against the models' own modules, and what of norms is refused."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llava_amber_activations import ActivationsError
from llava_amber_activations.vectors.norms import (
    Norms,
    _normalised,
    _step_by_step,
    apply_norm,
)

DTYPES = ("float32", "float16", "bfloat16")
MODULES = {
    "rms": lambda width: LlamaRMSNorm(width, eps=3e-6),
    "rms_offset": lambda width: GemmaRMSNorm(width, eps=3e-6),
    "layer_norm": lambda width: nn.LayerNorm(width, eps=3e-6),
}


def a_module(kind, width, dtype):
    """A module whose weights are drawn, and the same as `Norms` of two layers, of which it is 1."""
    generator = torch.Generator().manual_seed(width)
    module = MODULES[kind](width).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(width, generator=generator))

    def stacked(tensor):
        return None if tensor is None else torch.stack([torch.zeros_like(tensor), tensor]).detach()

    bias = stacked(getattr(module, "bias", None))
    return module, Norms(kind, (1.0, 3e-6), dtype, stacked(module.weight), bias)


def streams(rows, width, dtype):
    """Rows as unlike each other as those of a model: some a thousand times the others."""
    generator = torch.Generator().manual_seed(rows)
    sizes = torch.logspace(-2, 2, rows)[:, None]
    return (torch.randn(rows, width, generator=generator) * sizes + sizes / 3).to(
        getattr(torch, dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (70, 64), (600, 4096), (2, 40_000)])
@pytest.mark.parametrize("in_parallel", [False, True])
def test_equal_bits_of_the_models_own_module(kind, dtype, rows, width, in_parallel):
    module, norms = a_module(kind, width, dtype)
    x = streams(rows, width, dtype)
    expected = module(x[None])[0]
    assert expected.std() > 0.1
    norm, how = norms.layer(1), {"in_parallel": in_parallel}
    assert torch.equal(apply_norm(x, norm, **how), expected)
    # As a data set keeps it, and among other vectors of its rows.
    kept = x.to(torch.float16 if dtype == "float16" else torch.float32)
    block = torch.stack([kept, kept, kept], dim=1)
    found = apply_norm(block[:, 1], norm, out=block[:, 1], **how)
    assert torch.equal(found, expected.to(kept.dtype)) and torch.equal(found, block[:, 1])
    assert torch.equal(block[:, 0], kept) and torch.equal(block[:, 2], kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 4096), (600, 4096)])
def test_one_call_and_step_by_step(dtype, rows, width):
    """What a CPU and another device compute r by: here the same bits."""
    x = streams(rows, width, dtype)
    assert torch.equal(_normalised(x, 3e-6), _step_by_step(x, 3e-6))


def test_each_layer_has_its_own_norm():
    _, norms = a_module("layer_norm", 8, "float32")
    x = streams(5, 8, "float32")
    assert not apply_norm(x, norms.layer(0)).any()
    assert apply_norm(x, norms.layer(1)).any()


def test_no_rows():
    _, norms = a_module("rms", 8, "float32")
    assert apply_norm(torch.empty(0, 8), norms.layer(1)).shape == (0, 8)


@pytest.mark.parametrize(("dtype", "kept"), [("float32", "float16"), ("bfloat16", "float16")])
def test_what_the_dtype_cannot_hold_is_refused(dtype, kept):
    """A stream that was kept in fewer bits than the model computes in, and an input beyond them."""
    weight = torch.full((1, 4), 40_000.0, dtype=getattr(torch, dtype))
    norm = Norms("rms", (1e-6,), dtype, weight).layer(0)
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 9.0]], dtype=getattr(torch, kept))
    assert apply_norm(x[:1], norm).tolist() == [[pytest.approx(40_000, rel=1e-2)] * 4]
    with pytest.raises(ActivationsError, match=f"layer 0, .* {dtype}, .* that {kept} cannot hold"):
        apply_norm(x, norm)
    assert apply_norm(x.float(), norm).max() == pytest.approx(80_000, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "batch"}, "kind must be one of rms, rms_offset, layer_norm, got 'batch'"),
        ({"eps": (1e-6,)}, r"weight must be float32 \[1, H\].* got torch.float32 \[2, 4\]"),
        ({"dtype": "float16"}, r"weight must be float16 \[2, H\].* got torch.float32 \[2, 4\]"),
        ({"weight": torch.ones(2)}, r"weight must be float32 \[2, H\].* got torch.float32 \[2\]"),
        ({"bias": torch.ones(2, 3)}, r"bias must be float32 \[2, H\].* got torch.float32 \[2, 3\]"),
        ({"eps": (1e-6, -1.0)}, r"eps must be 0 or more in every layer, got \[1e-06, -1.0\]"),
        ({"eps": (1e-6, float("nan"))}, "eps must be 0 or more"),
        ({"weight": torch.full((2, 4), torch.nan)}, "weight holds values that are not finite"),
        ({"kind": "rms", "bias": torch.ones(2, 4)}, "a norm of the kind rms has no bias"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, match):
    fields = {"kind": "layer_norm", "eps": (1e-6, 1e-6), "dtype": "float32"}
    with pytest.raises(ActivationsError, match=match):
        Norms(**{**fields, "weight": torch.ones(2, 4), **changes})
