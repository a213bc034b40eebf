"""The text of each token of a sample, such that all of them, joined, are the decoded text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


def token_pieces(tokenizer: Any, ids: Sequence[int], image_token_id: int) -> list[str]:
    """Return each token's text, special tokens included.

    A token that ends no character has no text, and the one that ends it has all of it.

    Args:
        tokenizer: of transformers.
        ids: of a prompt, the tokens of its picture in place, and of what follows.
        image_token_id: of those tokens.
    """
    # The first of a picture's tokens may bring what the one before it owes; those after the second
    # have the second's text.
    again = [
        number > 1 and token == image_token_id == ids[number - 1] == ids[number - 2]
        for number, token in enumerate(ids)
    ]
    told = [token for token, is_known in zip(ids, again, strict=True) if not is_known]
    pieces = _streamed(tokenizer, told)
    if pieces is None:
        pieces = _by_prefixes(tokenizer, told)
    whole: list[str] = []
    following = iter(pieces)
    for is_known in again:
        whole.append(whole[-1] if is_known else next(following))
    return whole


def _streamed(tokenizer: Any, ids: Sequence[int]) -> list[str] | None:
    """Return each token's text as it comes when the tokens do; None where they do not add up."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    stream = DecodeStream(skip_special_tokens=False)
    try:
        pieces = [stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids]
    # The library's plain Exception: what it had decoded has changed.
    except Exception:
        return None
    text, joined = _decoded(tokenizer, ids), "".join(pieces)
    if not text.startswith(joined):
        return None
    # The last tokens may end no character.
    return [*pieces[:-1], pieces[-1] + text[len(joined) :]] if pieces else []


def _by_prefixes(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the beginning of the whole text that is decoded with it.

    In time that grows with the square of the tokens: for texts with bytes that are no characters,
    of which a decoder changes its mind, and for tokenizers that are none of `tokenizers`.
    """
    text = _decoded(tokenizer, ids)
    pieces, done = [], 0
    for number in range(1, len(ids) + 1):
        so_far = _decoded(tokenizer, ids[:number])
        known = done
        if so_far.startswith(text[:done]):
            while text[known : known + 1] == so_far[known : known + 1] != "":
                known += 1
        pieces.append(text[done:known])
        done = known
    return pieces


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
