"""Prompts and pictures made into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError

from capture.samples.chats import SYSTEM_ROLE, USER, Chat
from capture.samples.pictures import Picture
from capture.samples.queries import Query
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.store.samples import Turn

QUERY_PLACEHOLDER = "{query}"


def placeholder_chat(
    *, has_picture: bool = True, system: str | None = None, is_raw: bool = False
) -> Chat:
    """Return the chat that asks `QUERY_PLACEHOLDER`."""
    before = () if system is None else (Turn(SYSTEM_ROLE, system),)
    return Chat((*before, Turn(USER, QUERY_PLACEHOLDER)), has_picture, is_raw)


def render_prompt(processor: Any, chat: Chat) -> str:
    """Render a chat with the model's own chat template, up to where its answer begins.

    Raises:
        ActivationsError: the template refuses the chat, or leaves out what a turn says.
    """
    if chat.is_raw:
        return chat.turns[-1].text
    conversation: list[dict[str, Any]] = []
    has_picture = chat.has_picture
    for turn in chat.turns:
        content: list[dict[str, str]] = [{"type": "text", "text": turn.text}]
        if has_picture and turn.role == USER:
            content.insert(0, {"type": "image"})
            has_picture = False
        conversation.append({"role": turn.role, "content": content})
    try:
        prompt: str = processor.apply_chat_template(conversation, add_generation_prompt=True)
    except TemplateError as error:
        reason = " ".join(str(error).split())
        raise ActivationsError(
            f"the model's chat template refuses a chat of {_roles(chat)} ({reason}): leave out "
            "--system, or the samples that have such turns"
        ) from None
    for turn in chat.turns[:-1]:
        # A template may strip what surrounds a text.
        if turn.text.strip() not in prompt:
            raise ActivationsError(
                f"the model's chat template leaves out the {turn.role}'s turn of a chat of "
                f"{_roles(chat)}: leave out --system, or the samples that have such turns"
            )
    return prompt


def _roles(chat: Chat) -> str:
    return ", ".join(turn.role for turn in chat.turns)


def token_ids(processor: Any, chat: Chat) -> list[int]:
    """Return a chat's prompt as tokens, its picture still the one token that stands for it."""
    return all_token_ids(processor, [chat])[chat]


def all_token_ids(processor: Any, chats: Iterable[Chat]) -> dict[Chat, list[int]]:
    """Return each chat's prompt as tokens, as `token_ids` does, many at a time."""
    prompts = {chat: render_prompt(processor, chat) for chat in chats}
    ids: dict[Chat, list[int]] = {}
    for special in (True, False):
        same = [
            chat
            for chat, text in prompts.items()
            if _adds_special_tokens(processor, chat, text) is special
        ]
        if same:
            texts = [prompts[chat] for chat in same]
            found = processor.tokenizer(texts, add_special_tokens=special)["input_ids"]
            ids |= zip(same, found, strict=True)
    return ids


def _adds_special_tokens(processor: Any, chat: Chat, prompt: str) -> bool:
    # Some chat templates write the beginning-of-sequence token themselves.
    bos = processor.tokenizer.bos_token
    return chat.is_raw or not (bos and prompt.startswith(bos))


def answer_ids(processor: Any, answers: Iterable[str]) -> dict[str, list[int]]:
    """Return each answer's tokens, which go on from those of a prompt, whatever they are.

    Without the token that would end the answer's turn.
    """
    texts = list(dict.fromkeys(answers))
    if not texts:
        return {}
    ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return dict(zip(texts, ids, strict=True))


def system_spans(
    processor: Any, queries: Sequence[Query], prompt_lengths: Sequence[int], image_token_id: int
) -> list[range]:
    """Return the positions of the system's turn in each query's prompt; an empty list for none.

    They are those of the tokens that the prompt without that turn has not: the system's text and
    what the template puts around it. Where a template writes a system's turn of its own if it is
    given none, they are what differs from that.

    Args:
        prompt_lengths: tokens of each prompt, those of its picture in place.
    """
    plain = {query.chat: query.chat.without_system for query in queries}
    if all(chat == without for chat, without in plain.items()):
        return []
    ids = all_token_ids(processor, {**plain, **dict.fromkeys(plain.values())})
    spans = []
    for query, length in zip(queries, prompt_lengths, strict=True):
        found = _inserted(ids[query.chat], ids[plain[query.chat]])
        # What follows the picture comes later by the tokens that it has more than one.
        is_later = image_token_id in ids[query.chat][: found.start]
        later = length - len(ids[query.chat]) if is_later else 0
        spans.append(range(found.start + later, found.stop + later))
    return spans


def _inserted(with_it: Sequence[int], without: Sequence[int]) -> range:
    """Return which places of a sequence another one has not; none where they are equal."""
    n_shared = min(len(with_it), len(without))
    # From the end first: a turn that begins like the one after it begins where it itself does.
    after = next((n for n in range(n_shared) if with_it[-1 - n] != without[-1 - n]), n_shared)
    n_before = n_shared - after
    before = next((n for n in range(n_before) if with_it[n] != without[n]), n_before)
    return range(before, len(with_it) - after)


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

    Args:
        queries: all of them asked by the chat template, or none.
        pictures: of each query; empty where none has one.
    """
    chats = [query.chat for query in queries]
    prompts = [render_prompt(processor, chat) for chat in chats]
    # Processors tell a text without pictures by what they are not given.
    images = {"images": [[picture.image] for picture in pictures]} if pictures else {}
    inputs = processor(
        **images,
        text=prompts,
        add_special_tokens=_adds_special_tokens(processor, chats[0], prompts[0]),
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    return dict(inputs)
