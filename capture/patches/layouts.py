"""How each processor lays a picture's patches out, and the places of a batch's patches by that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from capture.patches.canvas import tiles_on_canvas
from capture.patches.grids import nowhere
from capture.patches.marked import (
    numbered_tiles,
    numbered_tiles_of_shapes,
    rows_with_breaks,
    separated_tiles,
    tiles_after_whole,
)
from capture.patches.resized import padded, resized
from capture.patches.seen_picture import SeenPicture
from capture.patches.unpadded import unpadded

_Layout = Callable[[Any, SeenPicture], torch.Tensor | None]

_TILES: Mapping[str, _Layout] = {
    "LlavaNextProcessor": unpadded,
    "LlavaOnevisionProcessor": unpadded,
    "Idefics3Processor": numbered_tiles,
    "SmolVLMProcessor": numbered_tiles,
    "GraniteDoclingProcessor": numbered_tiles,
    "Lfm2VlProcessor": numbered_tiles_of_shapes,
    "Llama4Processor": separated_tiles,
    "Ovis2Processor": tiles_after_whole,
    "InternVLProcessor": tiles_on_canvas,
    "QianfanOCRProcessor": tiles_on_canvas,
    "AyaVisionProcessor": tiles_on_canvas,
    "Cohere2VisionProcessor": tiles_on_canvas,
}


_WITHOUT_TILES: Mapping[str, _Layout] = {
    "PixtralProcessor": rows_with_breaks,
    "LightOnOcrProcessor": padded,
}

# What stands for the picture are queries that these models have learned, each of the whole picture.
_LEARNED_QUERIES = frozenset(
    f"{name}Processor" for name in ("Aria", "Blip2", "Idefics2", "InstructBlip", "Kosmos2")
)


@dataclass(frozen=True)
class PatchPlaces:
    """Where the patches of a batch's pictures lie.

    Attributes:
        of_elements: of each element (tile, row, column) of each token of its picture, in the order
            of these tokens: int64 [n, 3], as `grids` has it; -1 of a token that is no patch, and
            of all where it is not known how they lie.
        has_tiles: whether the model cuts pictures into tiles.
    """

    of_elements: tuple[torch.Tensor, ...]
    has_tiles: bool

    def of(self, elements: torch.Tensor) -> PatchPlaces:
        """Return the places of a batch whose pictures are those of `elements`, int64 [batch]."""
        places = tuple(self.of_elements[element] for element in elements.tolist())
        return PatchPlaces(places, self.has_tiles)


def cuts_tiles(processor: Any) -> bool:
    """Whether a model's pictures are cut into tiles, so that rows have a column `tile`."""
    return type(processor).__name__ in _TILES


def patch_places(
    processor: Any,
    inputs: Mapping[str, torch.Tensor],
    sizes: Sequence[tuple[int, int]],
    image_token_id: int,
) -> PatchPlaces:
    """Find where the patches of a batch's pictures lie.

    Args:
        inputs: what the processor returned, one picture an element, or none in all of them.
        sizes: (height, width) of each picture as the processor was given it; empty where there is
            none.
        image_token_id: of the tokens that stand for pictures.
    """
    name = type(processor).__name__
    layout = _TILES.get(name) or _WITHOUT_TILES.get(name) or resized
    is_placed = bool(sizes) and name not in _LEARNED_QUERIES
    places = []
    for element, (ids, mask) in enumerate(
        zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ):
        real = ids[mask.bool()]
        is_patch = real == image_token_id
        found = None
        if is_placed:
            seen = SeenPicture(inputs, element, real, is_patch, sizes[element])
            found = layout(processor, seen)
        n_tokens = int(is_patch.sum())
        known = found is not None and len(found) == n_tokens
        places.append(found if found is not None and known else nowhere(n_tokens))
    return PatchPlaces(tuple(places), cuts_tiles(processor))
