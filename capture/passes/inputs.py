"""Prompts and pictures made into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from capture.samples.pictures import Picture
from capture.samples.queries import Query

QUERY_PLACEHOLDER = "{query}"


def render_prompt(processor: Any, query: str) -> str:
    """Render one query with the model's own chat template, up to where its answer begins."""
    content = [{"type": "image"}, {"type": "text", "text": query}]
    conversation = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    return prompt


def token_ids(processor: Any, query: str) -> list[int]:
    """Return a query's prompt as tokens, its picture still the one token that stands for it."""
    return all_token_ids(processor, [query])[query]


def all_token_ids(processor: Any, queries: Sequence[str]) -> dict[str, list[int]]:
    """Return each query's prompt as tokens, as `token_ids` does, many at a time."""
    prompts = {query: render_prompt(processor, query) for query in queries}
    ids: dict[str, list[int]] = {}
    for special in (True, False):
        same = [
            q for q, text in prompts.items() if _adds_special_tokens(processor, text) is special
        ]
        if same:
            texts = [prompts[query] for query in same]
            found = processor.tokenizer(texts, add_special_tokens=special)["input_ids"]
            ids |= zip(same, found, strict=True)
    return ids


def _adds_special_tokens(processor: Any, prompt: str) -> bool:
    # Some chat templates write the beginning-of-sequence token themselves.
    bos = processor.tokenizer.bos_token
    return not (bos and prompt.startswith(bos))


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
    inputs = processor(
        images=[[picture.image] for picture in pictures],
        text=prompts,
        add_special_tokens=_adds_special_tokens(processor, prompts[0]),
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    return dict(inputs)
