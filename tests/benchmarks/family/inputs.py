"""What a small model is tried on: two texts of different lengths, with pictures if need be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

_TEXTS = ([11, 23, 35, 47, 59, 71, 83, 12, 24], [17, 29, 41, 53, 65, 77])
# Stands in a text for a picture, where exceptions.py gives a config no other.
PICTURE_TOKEN = 250
_FRAMES = 4


@dataclass(frozen=True)
class Trial:
    """Texts, and what a model that runs on no text alone is given beside them.

    Attributes:
        texts: token ids, of different lengths.
        beside: of every text, in order: [texts, …] each; what has a column for each token is as
            long as the longest.
    """

    texts: tuple[list[int], ...]
    beside: dict[str, torch.Tensor] = field(default_factory=dict)
    by_token: tuple[str, ...] = ()

    def batch(self) -> dict[str, torch.Tensor]:
        """Return all texts, padded on the right: ids and mask, int64 [texts, T]."""
        ids = torch.zeros(len(self.texts), max(map(len, self.texts)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(self.texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        return {"input_ids": ids, "attention_mask": mask, **self.beside}

    def alone(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield each text by itself, without padding: `input_ids` [1, T] and what is beside."""
        for row, text in enumerate(self.texts):
            beside = {name: value[row : row + 1] for name, value in self.beside.items()}
            cut = {name: beside[name][:, : len(text)] for name in self.by_token}
            yield {"input_ids": torch.tensor([text]), **beside, **cut}


def of_text(family: str) -> Trial:
    """Return texts without pictures."""
    if family == "paligemma":
        # Its processor says that the prompt is a prefix, all of which attends to all of it.
        prefix = torch.zeros(len(_TEXTS), max(map(len, _TEXTS)), dtype=torch.int64)
        return Trial(_TEXTS, {"token_type_ids": prefix}, ("token_type_ids",))
    return Trial(_TEXTS)


def with_pictures(family: str, config: Any) -> Trial | None:
    """Return texts with a drawn picture each, for the families that need one; None for others."""
    draw = torch.Generator().manual_seed(1)
    n = len(_TEXTS)
    vision = getattr(config, "vision_config", None)
    size = getattr(vision, "image_size", 0)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randn(n, *shape, 3, size, size, generator=draw)

    def after(n_tokens: int) -> tuple[list[int], ...]:
        return tuple([PICTURE_TOKEN] * n_tokens + text for text in _TEXTS)

    longest = max(map(len, _TEXTS))
    if family == "blip":
        return Trial(_TEXTS, {"pixel_values": pixels()})
    if family in ("blip-2", "instructblip", "instructblipvideo"):
        frames = (_FRAMES,) if family == "instructblipvideo" else ()
        beside = {"pixel_values": pixels(*frames)}
        if family != "blip-2":
            beside["qformer_input_ids"] = torch.tensor([text[:5] for text in _TEXTS])
        return Trial(after(config.num_query_tokens * (_FRAMES if frames else 1)), beside)
    if family == "idefics":
        mask = torch.ones(n, longest, 1, dtype=torch.int64)
        return Trial(
            _TEXTS,
            {"pixel_values": pixels(1), "image_attention_mask": mask},
            ("image_attention_mask",),
        )
    if family == "kosmos-2":
        texts = after(config.latent_query_num)
        where = torch.zeros(n, max(map(len, texts)), dtype=torch.int64)
        where[:, : config.latent_query_num] = 1
        beside = {"pixel_values": pixels(), "image_embeds_position_mask": where}
        return Trial(texts, beside, ("image_embeds_position_mask",))
    if family == "mllama":
        tiles = vision.max_num_tiles
        sees = torch.ones(n, longest, 1, tiles, dtype=torch.int64)
        # As in the processor's prompts, where the picture does not come first.
        sees[:, :2] = 0
        beside = {
            "pixel_values": pixels(1, tiles),
            "aspect_ratio_ids": torch.ones(n, 1, dtype=torch.int64),
            "aspect_ratio_mask": torch.ones(n, 1, tiles, dtype=torch.int64),
            "cross_attention_mask": sees,
        }
        return Trial(_TEXTS, beside, ("cross_attention_mask",))
    return None
