"""Which token positions of a batch become rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llava_amber_activations.errors import ActivationsError


@dataclass(frozen=True)
class Rows:
    """The rows of one batch, sample after sample, positions ascending.

    Attributes:
        flat: int64 [rows], index into the batch's [batch × T] tokens.
        element: int64 [rows], which element of the batch.
        position: int32 [rows], index of the token in its own sample, from 0.
        token_id: int32 [rows].
    """

    flat: torch.Tensor
    element: torch.Tensor
    position: torch.Tensor
    token_id: torch.Tensor

    def counts(self, batch_size: int) -> list[int]:
        """Return how many rows each element of the batch has."""
        return torch.bincount(self.element, minlength=batch_size).tolist()


def select_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    positions: str,
    image_token_id: int,
) -> Rows:
    """Choose the rows of a batch that is padded on the right; padding is never chosen.

    Args:
        input_ids: int64 [batch, T], on the CPU.
        attention_mask: int64 [batch, T], 1 for tokens and 0 for the padding after them.
        positions: `last` (the last token of each sample), `all`, `image` (the picture's patches)
            or `text` (everything else).

    Raises:
        ActivationsError: `positions` is none of these.
    """
    real = attention_mask.bool()
    if positions == "all":
        chosen = real
    elif positions == "image":
        chosen = real & (input_ids == image_token_id)
    elif positions == "text":
        chosen = real & (input_ids != image_token_id)
    elif positions == "last":
        chosen = torch.zeros_like(real)
        chosen[torch.arange(len(real)), real.sum(dim=1) - 1] = True
    else:
        raise ActivationsError(f"positions must be last, all, image or text, not {positions!r}")
    element, position = chosen.nonzero(as_tuple=True)
    return Rows(
        flat=element * input_ids.shape[1] + position,
        element=element,
        position=position.to(torch.int32),
        token_id=input_ids[element, position].to(torch.int32),
    )
