"""Finding a language model's decoder layers, and proving that they are what a tap expects.

    <model>
    └── … language_model
        └── layers: ModuleList of n_layers
            └── L                               resid_pre: what enters it
                ├── input_layernorm
                ├── self_attn
                ├── post_attention_layernorm    resid_mid: what enters it
                └── mlp                         mlp_in: what enters it; mlp_out: what it returns

The layers are found by this structure, not by the name of the model's class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava_amber_activations.errors import ActivationsError

_ATTENTION_NORM, _MLP_NORM, _MLP = "input_layernorm", "post_attention_layernorm", "mlp"


@dataclass(frozen=True)
class Decoder:
    """The decoder layers of a language model.

    Attributes:
        layers: the layers, in order.
        hidden_size: width H of the residual stream.
    """

    layers: tuple[nn.Module, ...]
    hidden_size: int

    def site(self, layer: int, x_site: str) -> nn.Module:
        """Return the module of `layer` whose input is `x` at `x_site`."""
        module = self.layers[layer]
        if x_site == "resid_pre":
            return module
        return module.get_submodule(_MLP_NORM if x_site == "resid_mid" else _MLP)

    def mlp(self, layer: int) -> nn.Module:
        """Return the module of `layer` whose output is `mlp_out`."""
        return self.layers[layer].get_submodule(_MLP)


def find_decoder(model: nn.Module) -> Decoder:
    """Find the decoder layers of a vision-language model.

    Args:
        model: a transformers model with a `config`.

    Raises:
        ActivationsError: there is no such stack of layers, or more than one.
    """
    whole: Any = model.config
    config = whole.get_text_config()
    n_layers, hidden_size = config.num_hidden_layers, config.hidden_size
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and all(_is_decoder_layer(layer) for layer in module)
    ]
    if len(stacks) != 1:
        raise ActivationsError(
            f"{type(model).__name__} has {len(stacks)} stacks of {n_layers} decoder layers with "
            f"{_ATTENTION_NORM}, {_MLP_NORM} and {_MLP}, where one is needed: "
            "its activations cannot be captured"
        )
    return Decoder(tuple(stacks[0]), hidden_size)


def _is_decoder_layer(layer: nn.Module) -> bool:
    children = dict(layer.named_children())
    return {_ATTENTION_NORM, _MLP_NORM, _MLP} <= children.keys()


def compile_layers(decoder: Decoder) -> None:
    """Have torch compile every layer's norms and MLP, once for all layers and lengths.

    Their `forward` alone: taps are hooks around it. The attention, which differs from layer to
    layer in the number that it keeps its cache under, would be compiled for each.
    """
    for layer in decoder.layers:
        for name in (_ATTENTION_NORM, _MLP_NORM, _MLP):
            module = layer.get_submodule(name)
            module.forward = torch.compile(module.forward, dynamic=True)


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states that a module was called with: [batch, T, H]."""
    value = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(value, torch.Tensor):
        raise ActivationsError("a decoder layer was called without hidden states")
    return value


def output_tensor(output: Any) -> torch.Tensor:
    """Return the states that a module returned, [batch, T, H], alone or first in a tuple.

    Mixtures of experts return what their router decided beside them.
    """
    value = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(value, torch.Tensor):
        raise ActivationsError(
            f"a decoder layer's module returned {type(value).__name__}, not hidden states"
        )
    return value


@torch.inference_mode()
def check_sites(
    model: nn.Module, decoder: Decoder, input_ids: torch.Tensor
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Check on one short text that each layer adds what its `mlp` returns to what enters its norm.

    That is what makes `resid_mid` the stream that the MLP block reads, and `mlp_out` what the block
    adds to it. Models with another order of norms, or that scale either term, do not pass.

    Args:
        model: the model without its head.
        input_ids: int64 [1, T], text tokens only.

    Returns:
        Of each layer, what its norm was given and what its MLP then received: [1, T, H] each.

    Raises:
        ActivationsError: a layer does not do that, is of another width than the config says, or a
            site was not reached.
    """
    seen: dict[tuple[int, str], torch.Tensor] = {}
    handles = []
    for number, layer in enumerate(decoder.layers):
        for name, module in (
            ("resid_mid", decoder.site(number, "resid_mid")),
            ("mlp_in", decoder.mlp(number)),
            ("layer", layer),
        ):

            def keep(
                module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                output: Any,
                key: tuple[int, str] = (number, name),
            ) -> None:
                seen[key] = first_tensor(args, kwargs)
                seen[key[0], f"{key[1]}_out"] = output_tensor(output)

            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    try:
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
        for number in range(len(decoder.layers)):
            _check_width(number, decoder, seen)
            _check_layer(number, seen)
        layers = range(len(decoder.layers))
        return {number: (seen[number, "resid_mid"], seen[number, "mlp_in"]) for number in layers}
    except KeyError as error:
        raise ActivationsError(f"the site {error} is not reached when the model runs") from None
    finally:
        for handle in handles:
            handle.remove()


def _check_width(number: int, decoder: Decoder, seen: dict[tuple[int, str], torch.Tensor]) -> None:
    for site in ("layer", "resid_mid", "mlp_in", "mlp_in_out"):
        width = seen[number, site].shape[-1]
        if width != decoder.hidden_size:
            what = "returns" if site == "mlp_in_out" else "receives"
            module = {"layer": "", "resid_mid": f"'s {_MLP_NORM}"}.get(site, f"'s {_MLP}")
            raise ActivationsError(
                f"decoder layer {number}{module} {what} vectors of width {width}, and the config "
                f"says {decoder.hidden_size}: layers of several widths cannot be captured together"
            )


def _check_layer(number: int, seen: dict[tuple[int, str], torch.Tensor]) -> None:
    added = seen[number, "resid_mid"] + seen[number, "mlp_in_out"]
    same_sum = torch.allclose(added, seen[number, "layer_out"], rtol=1e-3, atol=1e-3)
    norm_feeds_mlp = torch.equal(seen[number, "resid_mid_out"], seen[number, "mlp_in"])
    if not (same_sum and norm_feeds_mlp):
        raise ActivationsError(
            f"decoder layer {number} does not add its MLP's output to what enters "
            f"{_MLP_NORM}: this model's residual stream is built differently, "
            "and its activations cannot be captured"
        )
