"""Which token positions of a batch become rows, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from capture.patches.layouts import PatchPlaces
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import (
    ANSWER,
    GENERATED,
    IMAGE_PATCH,
    KIND,
    NO_PATCH,
    PATCH_COL,
    PATCH_ROW,
    POSITION,
    SAMPLE,
    SYSTEM,
    TEXT,
    TILE,
    TOKEN_ID,
)


@dataclass(frozen=True)
class PositionChoice:
    """Which positions of a sample are kept.

    Attributes:
        mode: `last` (the last token), `all`, `image` (the picture's patches), `text` (the rest of
            the prompt, the system's turn included), `generated` (the response) or `answer` (the
            answer that was given to read).
        sample_positions: draw so many of them from each sample, where it has more; all if None.
        seed: of the draw.
        always: `last` keeps the last token beside them, which the draw does not count.
    """

    mode: str
    sample_positions: int | None = None
    seed: int = 0
    always: str | None = None


@dataclass(frozen=True)
class ChosenRows:
    """The rows of one batch, sample after sample, positions ascending.

    Attributes:
        flat: int64 [rows], index into the batch's [batch × T] tokens.
        element: int64 [rows], which element of the batch.
        columns: the store's row tensors by their names, each [rows].
    """

    flat: torch.Tensor
    element: torch.Tensor
    columns: dict[str, torch.Tensor]


def select_rows(
    inputs: Mapping[str, torch.Tensor],
    samples: Sequence[int],
    choice: PositionChoice,
    image_token_id: int,
    prompt_lengths: Sequence[int] | None = None,
    patches: PatchPlaces | None = None,
    *,
    after: int = GENERATED,
    system: Sequence[range] = (),
) -> ChosenRows:
    """Choose the rows of a batch that is padded on the right; padding is never chosen.

    Args:
        inputs: with `input_ids` and `attention_mask`, int64 [batch, T], on the CPU.
        samples: number of each element's sample.
        prompt_lengths: tokens of each element's prompt; those after it are its response, or its
            answer. Where it is None, every token is the prompt's.
        after: kind of those after the prompt.
        system: positions of each element's system's turn; none has one where it is empty.
        patches: where those of each element's picture lie; where it is None, nobody knows.

    Raises:
        ActivationsError: the mode is none of those of `PositionChoice`.
    """
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    kind = torch.full_like(ids, TEXT)
    kind[ids == image_token_id] = IMAGE_PATCH
    for row, span in zip(kind, system, strict=bool(system)):
        row[span.start : span.stop] = SYSTEM
    if prompt_lengths is not None:
        is_after = torch.arange(ids.shape[1]) >= torch.tensor(prompt_lengths)[:, None]
        kind[is_after] = after
    chosen = _chosen(kind, real, choice.mode)
    if choice.sample_positions is not None:
        _draw(chosen, samples, choice.sample_positions, choice.seed)
    if choice.always is not None:
        chosen |= _chosen(kind, real, choice.always)
    element, position = chosen.nonzero(as_tuple=True)
    tile, patch_row, patch_col = _places(kind, real, patches)[element, position].unbind(dim=1)
    columns = {
        SAMPLE: torch.tensor(samples)[element],
        POSITION: position,
        TOKEN_ID: ids[element, position],
        KIND: kind[element, position],
        PATCH_ROW: patch_row,
        PATCH_COL: patch_col,
    }
    if patches is not None and patches.has_tiles:
        columns[TILE] = tile
    return ChosenRows(
        flat=element * ids.shape[1] + position,
        element=element,
        columns={name: column.to(torch.int32) for name, column in columns.items()},
    )


def _chosen(kind: torch.Tensor, real: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "all":
        return real.clone()
    if mode == "image":
        return real & (kind == IMAGE_PATCH)
    if mode == "text":
        return real & ((kind == TEXT) | (kind == SYSTEM))
    if mode == "generated":
        return real & (kind == GENERATED)
    if mode == "answer":
        return real & (kind == ANSWER)
    if mode == "last":
        chosen = torch.zeros_like(real)
        chosen[torch.arange(len(real)), real.sum(dim=1) - 1] = True
        return chosen
    raise ActivationsError(
        f"positions must be last, all, image, text, generated or answer, not {mode!r}"
    )


def _draw(chosen: torch.Tensor, samples: Sequence[int], count: int, seed: int) -> None:
    """Leave `count` of each sample's positions, by a draw that depends on seed and sample alone."""
    for row, sample in zip(chosen, samples, strict=True):
        positions = row.nonzero()[:, 0].numpy()
        if len(positions) > count:
            generator = np.random.default_rng((seed, sample))
            kept = generator.choice(positions, size=count, replace=False)
            row.zero_()
            row[torch.from_numpy(kept)] = True


def _places(kind: torch.Tensor, real: torch.Tensor, patches: PatchPlaces | None) -> torch.Tensor:
    """Return tile, patch row and patch column of every token: int64 [batch, T, 3]."""
    places = torch.full((*kind.shape, 3), NO_PATCH)
    if patches is not None:
        for element, found in enumerate(patches.of_elements):
            places[element, real[element] & (kind[element] == IMAGE_PATCH)] = found
    return places
