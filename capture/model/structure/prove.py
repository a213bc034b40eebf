"""Finding a language model's decoder layers, and proving what their modules compute.

    <model>
    └── … language_model
        └── layers: ModuleList of n_layers
            └── L                               resid_pre: what enters it
                ├── input_layernorm
                ├── self_attn
                ├── post_attention_layernorm    resid_mid: what enters it
                └── mlp                         mlp_in: what enters it; mlp_out: what it returns

That is Llama's; other families call the modules otherwise, and have more of them. Nothing is found
by a name: the model runs once, and of every layer it is searched what adds up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capture.model.decoder import Decoder
from capture.model.structure.block import Block
from capture.model.structure.calls import LayerCalls, Listening
from capture.model.structure.search import NoBlockError, find_block
from llava_amber_activations.errors import ActivationsError


@dataclass(frozen=True)
class ProvenDecoder:
    """A decoder, and what was seen of it.

    Attributes:
        decoder: its layers and their blocks.
        seen: of each layer, some rows of `resid_mid` and of `mlp_in`, [rows, H] each, on the CPU;
            `mlp_in` is None where the MLP gets no one vector.
    """

    decoder: Decoder
    seen: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class _Found:
    block: Block
    seen: tuple[torch.Tensor, torch.Tensor | None]


class CannotRunError(ActivationsError):
    """The model does not run on the inputs that it was tried with."""


@torch.inference_mode()
def prove_decoder(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> ProvenDecoder:
    """Run a model once, and find in every decoder layer what is added to the stream.

    Proven of each layer, on that run: that what it returns is the sum of `resid_mid` and `mlp_out`
    up to rounding (or, where its block says that more is done, that this is all), that the MLP gets
    what the norm returns, and that the MLP makes each position's output of its input alone.

    Args:
        model: a transformers model with a `config`; without its head it is quicker.
        inputs: what it is called with: `input_ids` int64 [1, T] with T of 2 or more, and whatever
            else it needs.

    Raises:
        ActivationsError: there is no such stack of layers, more than one, or a layer in which
            nothing of the kind holds.
        CannotRunError: the model does not run on these inputs.
    """
    whole: Any = model.config
    config = whole.get_text_config()
    name = _name(model)
    if getattr(whole, "is_encoder_decoder", False):
        raise ActivationsError(
            f"{name} is an encoder-decoder: its encoder reads the prompt, whose tokens are no "
            "positions of its decoder, and its activations cannot be captured"
        )
    n_layers, width = (getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size"))
    if n_layers is None or width is None:
        raise ActivationsError(
            f"the config of {name} does not say how many layers its language model has, or how "
            "wide they are: its activations cannot be captured"
        )
    stacks = [
        tuple(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    layers = [layer for stack in stacks for layer in stack]
    heard: dict[int, list[_Found | NoBlockError]] = {}

    def hear(place: int, calls: LayerCalls) -> None:
        if all(call.given is None for call in calls.every):
            return
        try:
            block, resid_mid, mlp_in = find_block(calls)
            found: _Found | NoBlockError = _Found(block, (resid_mid, mlp_in))
        except NoBlockError as error:
            # Its frames hold all that the layer computed.
            found = error.with_traceback(None)
        heard.setdefault(place, []).append(found)

    with Listening(layers, inputs["input_ids"].numel(), width, hear):
        _run(model, inputs)
    starts = [n_layers * number for number in range(len(stacks))]
    reached = [start for start in starts if any(start + n in heard for n in range(n_layers))]
    if len(reached) != 1:
        raise ActivationsError(
            f"{name} has {len(reached)} stacks of {n_layers} decoder layers of width {width} that "
            "its tokens run through, where one is needed: its activations cannot be captured"
        )
    start = reached[0]
    found = [_one(number, heard.get(start + number, [])) for number in range(n_layers)]
    decoder = Decoder(stacks[start // n_layers], width, tuple(each.block for each in found))
    return ProvenDecoder(decoder, {number: each.seen for number, each in enumerate(found)})


def _name(model: nn.Module) -> str:
    return str(getattr(model, "name", type(model).__name__))


def _run(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
    masked = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    try:
        model(**masked, use_cache=False)
    except (torch.OutOfMemoryError, ActivationsError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as e:
        what = "a short text" if len(inputs) == 1 else "a short text with a picture"
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise CannotRunError(
            f"{_name(model)} does not run on {what} ({reason}): its activations cannot be captured"
        ) from e


def _one(number: int, runs: list[_Found | NoBlockError]) -> _Found:
    if len(runs) != 1:
        what = f"runs {len(runs)} times" if runs else "is not reached"
        raise ActivationsError(
            f"decoder layer {number} {what} when the model runs: its activations cannot be captured"
        )
    found = runs[0]
    if isinstance(found, _Found):
        return found
    of_widths = "layers of several widths cannot be captured together"
    said = str(found)
    if said.startswith("'s "):
        raise ActivationsError(f"decoder layer {number}{said}: {of_widths}")
    raise ActivationsError(
        f"decoder layer {number} {said}: this model's residual stream is built differently, and "
        "its activations cannot be captured"
    )
