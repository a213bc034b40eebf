"""The decoder layers of a language model: where the taps go, and what they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from capture.model.structure.block import Block
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import layers_text


@dataclass(frozen=True)
class Decoder:
    """The decoder layers of a language model.

    Attributes:
        layers: the layers, in order.
        hidden_size: width H of the residual stream.
        blocks: the MLP block of each layer.
    """

    layers: tuple[nn.Module, ...]
    hidden_size: int
    blocks: tuple[Block, ...]

    def site(self, layer: int, x_site: str) -> nn.Module:
        """Return the module of `layer` whose input is `x` at `x_site`.

        Raises:
            ActivationsError: the layer has no such site.
        """
        block = self.blocks[layer]
        if x_site == "resid_mid":
            return block.reads.module
        if x_site == "resid_pre" and block.one_stream:
            return self.layers[layer]
        if x_site == "mlp_in" and block.mlp is not None:
            return block.mlp.module
        why = (
            "is given several streams side by side"
            if x_site == "resid_pre"
            else "has an MLP of several branches, each with a norm of its own"
        )
        raise ActivationsError(
            f"decoder layer {layer} of this model {why}, so that no one vector is its {x_site}: "
            "capture with --x-site resid_mid"
        )

    def adds(self, layer: int) -> nn.Module:
        """Return the module of `layer` whose output, times `scale`, is `mlp_out`."""
        return self.blocks[layer].adds.module

    def scale(self, layer: int) -> float | torch.Tensor | None:
        """Return what that output is multiplied by; None where it is taken as it is."""
        scale = self.blocks[layer].scale
        return None if scale is None else scale.factor

    def sites(self, x_site: str) -> dict[str, str]:
        """Say of `x` and `mlp_out` which module's input or output they are, for a recipe.

        Where layers differ, `0-2: …; 3: …`.

        Raises:
            ActivationsError: a layer has no such site.
        """
        for layer in range(len(self.layers)):
            self.site(layer, x_site)
        return {
            "x": _by_layers([block.site(x_site) for block in self.blocks]),
            "mlp_out": _by_layers([block.added for block in self.blocks]),
        }


def _by_layers(said: list[str]) -> str:
    layers: dict[str, list[int]] = {}
    for layer, words in enumerate(said):
        layers.setdefault(words, []).append(layer)
    if len(layers) == 1:
        return said[0]
    return "; ".join(f"{layers_text(some)}: {words}" for words, some in layers.items())


def compile_layers(decoder: Decoder) -> None:
    """Have torch compile every layer's norms and MLP, once for all layers and lengths.

    Their `forward` alone: taps are hooks around it. The attention, which differs from layer to
    layer in the number that it keeps its cache under, would be compiled for each.
    """
    for block in decoder.blocks:
        for module in block.compiled:
            module.forward = torch.compile(module.forward, dynamic=True)
