"""One picture of a batch, as a processor made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SeenPicture:
    """What is known of a picture and of the tokens that stand for it.

    Attributes:
        inputs: of the batch, as the processor returned them.
        element: which of the batch; each has one picture.
        ids: int64 [T], the element's tokens without padding.
        is_patch: bool [T], which of them the model's picture takes the place of.
        size: (height, width) of the picture as the processor was given it, in pixels.
    """

    inputs: Mapping[str, torch.Tensor]
    element: int
    ids: torch.Tensor
    is_patch: torch.Tensor
    size: tuple[int, int]

    @property
    def n_tokens(self) -> int:
        """How many tokens stand for the picture."""
        return int(self.is_patch.sum())

    @property
    def n_elements(self) -> int:
        """How many pictures the batch has."""
        return len(self.inputs["input_ids"])

    def runs(self) -> list[tuple[int, int]]:
        """Return where tokens of the picture follow each other: `(first, past the last)`."""
        outside = torch.zeros(1, dtype=torch.int8)
        edges = self.is_patch.to(torch.int8).diff(prepend=outside, append=outside)
        starts, stops = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        return list(zip(starts.tolist(), stops.tolist(), strict=True))
