"""One picture of a batch, as a processor made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

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
        return _runs(self.is_patch)

    @property
    def n_runs_before(self) -> int:
        """How many such runs the elements before have together."""
        token = self.ids[self.is_patch][0]
        before = zip(self.inputs["input_ids"], self.inputs["attention_mask"], strict=True)
        return sum(
            len(_runs((ids == token) & mask.bool())) for ids, mask in islice(before, self.element)
        )


def _runs(is_patch: torch.Tensor) -> list[tuple[int, int]]:
    outside = torch.zeros(1, dtype=torch.int8)
    edges = is_patch.to(torch.int8).diff(prepend=outside, append=outside)
    starts, stops = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
