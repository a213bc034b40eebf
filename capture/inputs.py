"""Prompts and pictures made into the tensors of one forward pass."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from capture.queries import Query, image_path, unreadable_image

QUERY_PLACEHOLDER = "{query}"


@dataclass(frozen=True)
class Picture:
    """A decoded picture, RGB, and the SHA-256 of its file."""

    image: Image.Image
    sha256: str


def read_picture(image_dir: Path, query: Query) -> Picture:
    """Read a sample's picture.

    Raises:
        ActivationsError: it is missing, outside the folder, or cannot be decoded.
    """
    path = image_path(image_dir, query)
    try:
        content = path.read_bytes()
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unreadable_image(path, query, error) from None
    return Picture(image, hashlib.sha256(content).hexdigest())


def render_prompt(processor: Any, query: str) -> str:
    """Render one query with the model's own chat template, up to where its answer begins."""
    content = [{"type": "image"}, {"type": "text", "text": query}]
    conversation = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    return prompt


def make_inputs(
    processor: Any,
    queries: Sequence[Query],
    pictures: Sequence[Picture],
    padding_side: str = "right",
) -> dict[str, torch.Tensor]:
    """Make the model's inputs for a batch, padded where prompts differ in length.

    On the right for a capture, because then every token keeps the position that it has alone,
    whichever way a model counts positions, and causal attention never reaches the padding. On the
    left for generation, which goes on from the end of every prompt.
    """
    prompts = [render_prompt(processor, query.query) for query in queries]
    bos = processor.tokenizer.bos_token
    inputs = processor(
        images=[picture.image for picture in pictures],
        text=prompts,
        # Some chat templates write the beginning-of-sequence token themselves.
        add_special_tokens=not (bos and prompts[0].startswith(bos)),
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    return dict(inputs)
