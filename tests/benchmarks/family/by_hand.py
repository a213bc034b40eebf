"""The independent computation: which modules hold a family's vectors, by name, and plain hooks.

Nothing of this project is used here. The names are those that each family's code in transformers
5.24 has; a family without an entry of its own is said to have Llama's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

Factor = float | torch.Tensor


@dataclass(frozen=True)
class ByHand:
    """What the modules of a decoder layer are called.

    Attributes:
        layers: path of the layers in the model.
        reads: module whose input is `resid_mid`.
        adds: module whose output, times `scale`, is `mlp_out`.
        attention: module whose output, times `scale`, is added before it; the first that a layer
            has of several; "" where what is added before is not checked.
        scale: of a layer, what both outputs are multiplied by.
        rest: what the layer returns: "sum" of `resid_mid` and `mlp_out`; "beside", with the
            attention's output as a third; "other", which is not checked.
        runs: path of the module that is called for a text; "" for the model.
    """

    layers: str = "model.language_model.layers"
    reads: str = "post_attention_layernorm"
    adds: str = "mlp"
    attention: tuple[str, ...] = ("self_attn", "linear_attn", "conv")
    scale: Callable[[Any], Factor] = lambda layer: 1.0
    rest: str = "sum"
    runs: str = ""


LLAMA = ByHand()
BOTH_SIDES = ByHand(
    reads="pre_feedforward_layernorm",
    adds="post_feedforward_layernorm",
    attention=("post_attention_layernorm",),
)
BESIDE = ByHand(reads="input_layernorm", rest="beside")
GLM4 = ByHand(attention=("post_self_attn_layernorm",), adds="post_mlp_layernorm")
BERT = ByHand(reads="intermediate", adds="output.dense", attention=(), rest="other")
OPT = ByHand("language_model.model.decoder.layers", reads="final_layer_norm", adds="fc2")
GEMMA4 = replace(BOTH_SIDES, rest="other")


def _residual_multiplier(layer: Any) -> float:
    return float(layer.residual_multiplier)


def _cross_gate(layer: Any) -> Factor:
    gate: torch.Tensor | None = getattr(layer, "cross_attn_mlp_gate", None)
    return 1.0 if gate is None else gate.tanh()


def _gate(layer: Any) -> torch.Tensor:
    gate = layer.post_feedforward_residual_gate
    return (gate.gate / gate.temperature).sigmoid()


NAMES: dict[str, ByHand] = {
    "apertus1p5": ByHand(reads="feedforward_layernorm"),
    "aya_vision": BESIDE,
    "blip": replace(BERT, layers="text_decoder.bert.encoder.layer"),
    "blip-2": OPT,
    "chameleon": ByHand("model.layers"),
    "cohere2_vision": BESIDE,
    "cohere_compass": BESIDE,
    "diffusion_gemma": replace(GEMMA4, layers="model.encoder.language_model.layers"),
    "emu3": ByHand("model.text_model.layers"),
    "evolla": ByHand("model.layers", rest="other", attention=("self_attn",)),
    "exaone4_5": ByHand(
        reads="mlp", adds="post_feedforward_layernorm", attention=("post_attention_layernorm",)
    ),
    "gemma3": BOTH_SIDES,
    "gemma3n": replace(GEMMA4, attention=()),
    "gemma4": GEMMA4,
    "gemma4_unified": GEMMA4,
    "git": replace(BERT, layers="git.encoder.layer"),
    "glm46v": GLM4,
    "glm4v": GLM4,
    "glm_ocr": GLM4,
    "glmga": GLM4,
    "granite4_vision": ByHand(scale=_residual_multiplier),
    "granite_docling": ByHand("model.text_model.layers", scale=_residual_multiplier),
    "hyperclovax_vision_v2": ByHand(
        attention=("post_norm1",), adds="post_norm2", scale=_residual_multiplier
    ),
    "idefics": ByHand("model.layers"),
    "idefics2": ByHand("model.text_model.layers"),
    "idefics3": ByHand("model.text_model.layers"),
    "inkling_mm_model": ByHand(attention=("attn_sconv",), adds="mlp_sconv"),
    "instructblip": OPT,
    "instructblipvideo": OPT,
    "kosmos-2": ByHand(
        "text_model.model.layers", reads="final_layer_norm", adds="ffn", attention=("self_attn",)
    ),
    "kosmos-2.5": ByHand(
        "text_model.model.layers", reads="final_layer_norm", adds="ffn", attention=("self_attn",)
    ),
    "lfm2_vl": ByHand(reads="ffn_norm", adds="feed_forward"),
    "lfm3_vl": ByHand(reads="ffn_norm", adds="post_ffn_norm", attention=("post_operator_norm",)),
    "llama4": ByHand("language_model.model.layers", adds="feed_forward", runs="language_model"),
    "mistral4": ByHand("model.layers"),
    "mllama": ByHand(attention=("self_attn",), scale=_cross_gate),
    "muse_glimmer": BOTH_SIDES,
    "muse_spark": replace(BOTH_SIDES, attention=(), scale=_gate, rest="other"),
    "shieldgemma2": BOTH_SIDES,
    "smolvlm": ByHand("model.text_model.layers"),
}


@dataclass(frozen=True)
class Heard:
    """What a pass over one text held, of each layer: [T, H] of x, of mlp_out.

    Attributes:
        gap: worst relative error of what the names say of the layers themselves.
    """

    x: list[torch.Tensor]
    mlp_out: list[torch.Tensor]
    gap: float


@torch.no_grad()
def hear(model: nn.Module, names: ByHand, inputs: dict[str, torch.Tensor]) -> Heard:
    """Run a model on one text, and return what its named modules got and gave.

    Args:
        inputs: `input_ids` [1, T] without padding, and what else the model needs.
    """
    kept: dict[tuple[int, str], torch.Tensor] = {}
    handles = []

    def keep(number: int, name: str, takes_input: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            value = next(iter((*args, *kwargs.values()))) if takes_input else output
            value = value[0] if isinstance(value, tuple) else value
            kept[number, name] = value.reshape(-1, value.shape[-1]).clone()

        return hook

    layers = list(model.get_submodule(names.layers))
    for number, layer in enumerate(layers):
        attention = [name for name in names.attention if _has(layer, name)][:1]
        for path, name, takes_input in (
            ("", "given", True),
            ("", "returned", False),
            (names.reads, "x", True),
            (names.adds, "added", False),
            *((path, "attention", False) for path in attention),
        ):
            handles.append(
                layer.get_submodule(path).register_forward_hook(
                    keep(number, name, takes_input), with_kwargs=True
                )
            )
    try:
        runs = model.get_submodule(names.runs)
        runs(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = Heard([], [], 0.0)
    gap = 0.0
    for number, layer in enumerate(layers):
        scale = names.scale(layer)
        x, mlp_out = kept[number, "x"], scale * kept[number, "added"]
        found.x.append(x)
        found.mlp_out.append(mlp_out)
        attention = scale * kept[number, "attention"] if (number, "attention") in kept else None
        total = x + mlp_out
        if names.rest == "beside":
            assert attention is not None
            total = total + attention
        elif attention is not None:
            gap = max(gap, worst(kept[number, "given"] + attention, x))
        if names.rest != "other":
            gap = max(gap, worst(total, kept[number, "returned"]))
    return replace(found, gap=gap)


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error of a vector, over the norm of what was expected: of [rows, H]."""
    apart = (found.double() - expected.double()).norm(dim=-1)
    return float((apart / expected.double().norm(dim=-1)).nan_to_num(nan=torch.inf).max())


def _has(layer: nn.Module, path: str) -> bool:
    return isinstance(getattr(layer, path, None), nn.Module)
