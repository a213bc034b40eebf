"""The MLP block of one decoder layer: which modules hold the vectors that are captured.

    resid_mid ──▶ reads ──▶ mlp ──▶ … ──▶ adds ──▶ × scale ──▶ mlp_out
        │                                                        │
        └───────────────── × carry ─────────────────────────────▶ + ──▶ the layer goes on

In most models `reads` is a norm, `adds` is `mlp` itself, and there is neither scale nor carry. A
norm after the MLP (Gemma 3) is `adds`. Where there is none before it (OLMo 2), `reads` is `mlp`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Scale:
    """What a term is multiplied by.

    Attributes:
        factor: a number, or one of each dimension: [H], of the model's dtype.
        said: the same in words, for a recipe.
    """

    factor: float | torch.Tensor
    said: str


@dataclass(frozen=True)
class Part:
    """A module of a layer, and its path in it."""

    path: str
    module: nn.Module


@dataclass(frozen=True)
class Block:
    """The MLP block of a layer.

    Attributes:
        reads: its input is `resid_mid`.
        mlp: its input is `mlp_in`; None where several modules read the stream side by side, so that
            no one vector is what the MLP receives.
        adds: its output, times `scale`, is `mlp_out`, the term that is added to the stream.
        scale: of `adds`; None is 1.
        normed: whether `reads` is a norm, and `mlp` gets what it returns.
        one_stream: whether the layer is given one stream, `resid_pre`.
        further: what else the layer does to the stream that `resid_mid` and `mlp_out` do not hold,
            in words; "" where their sum is what it returns.
        compiled: what torch compiles of the layer: its norms, and what its MLP is made of.
    """

    reads: Part
    mlp: Part | None
    adds: Part
    scale: Scale | None
    normed: bool
    one_stream: bool
    further: str
    compiled: tuple[nn.Module, ...]

    def site(self, x_site: str) -> str:
        """Say which module's input or output `x` is."""
        if x_site == "resid_pre":
            return "input of the decoder layer"
        part = self.reads if x_site == "resid_mid" else self.mlp
        return "none" if part is None else f"input of {part.path}"

    @property
    def added(self) -> str:
        """Say which module's output `mlp_out` is, and what else the layer does."""
        scaled = "" if self.scale is None else f"{self.scale.said} × "
        further = f" ({self.further})" if self.further else ""
        return f"{scaled}output of {self.adds.path}{further}"
