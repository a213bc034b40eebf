"""The prompts of all queries, made into tokens once and checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from capture.model.load import CaptureModel
from capture.passes.inputs import QUERY_PLACEHOLDER, all_token_ids, make_inputs
from capture.samples.pictures import Picture
from capture.samples.queries import Query
from capture.settings import CaptureSettings

# No picture has fewer tokens than a small one: whose own are more is found when it is read.
_SMALL_PICTURE = (64, 64)
_STANDS_FOR_A_PICTURE = ("image_token", "boi_token", "video_token", "audio_token")


@dataclass(frozen=True)
class Prompts:
    """What is asked of a model.

    Attributes:
        ids: of each query's text, its prompt as tokens, a picture still what stands for it.
        unusable: of each sample that cannot be asked, why.
        picture_tokens: tokens that a small picture puts in the place of what stands for it, beyond
            that one.
        n_pictures: what stands for a picture in a prompt.
    """

    ids: dict[str, list[int]]
    unusable: dict[int, str] = field(default_factory=dict)
    picture_tokens: int = 0
    n_pictures: int = 1


def make_prompts(queries: Sequence[Query], model: CaptureModel, most_tokens: int | None) -> Prompts:
    """Make the prompts of `queries`, and find those that cannot be asked.

    Those are the queries that hold what stands for a picture, and those that are too long even on
    a small picture.

    Args:
        most_tokens: of a prompt with its picture; None where there is no limit.
    """
    texts = {query.query for query in queries}
    ids = all_token_ids(model.processor, [QUERY_PLACEHOLDER, *sorted(texts)])
    placeholder = ids[QUERY_PLACEHOLDER]
    if QUERY_PLACEHOLDER not in texts:
        del ids[QUERY_PLACEHOLDER]
    stand_ins = _stand_ins(model.processor)
    n_pictures = placeholder.count(model.image_token_id)
    n_picture_tokens = _small_picture_tokens(model.processor) - len(placeholder)
    unusable = {}
    for query in queries:
        tokens = ids[query.query]
        held = next((text for text in stand_ins if text in query.query), None)
        if held is not None or tokens.count(model.image_token_id) != n_pictures:
            unusable[query.sample] = (
                f"the query of sample {query.sample} holds {held or 'a token'!r}, which stands for "
                "a picture's own tokens in a prompt: take it out, or leave the sample out with "
                "--on-error skip"
            )
        elif most_tokens is not None and len(tokens) + n_picture_tokens > most_tokens:
            unusable[query.sample] = too_long(query, len(tokens) + n_picture_tokens, most_tokens)
    return Prompts(ids, unusable, n_picture_tokens, n_pictures)


def least_rows(prompts: Prompts, queries: Iterable[Query], settings: CaptureSettings) -> int:
    """Return how many rows samples have in all: exact where every picture has the same tokens.

    A picture that has more than a small one gives more rows, and so does a generated response,
    which is counted as one token.
    """
    total = 0
    for query in queries:
        if query.sample in prompts.unusable:
            continue
        n_text = len(prompts.ids[query.query]) - prompts.n_pictures
        n_image = prompts.n_pictures + prompts.picture_tokens
        n_rows = {"all": n_text + n_image, "image": n_image, "text": n_text}.get(
            settings.positions, 1
        )
        if settings.sample_positions is not None:
            n_rows = min(n_rows, settings.sample_positions)
        # The last token is text: of other positions the draw may have taken it already.
        total += n_rows + (settings.always is not None and settings.positions == "image")
    return total


def too_long(query: Query, n_tokens: int, most_tokens: int) -> str:
    """Say that a prompt with its picture has more tokens than the model was made for."""
    return (
        f"the prompt of sample {query.sample} has {n_tokens} tokens with its picture, and the "
        f"model takes {most_tokens} at most (less what it may generate): shorten the query, or "
        "leave the sample out with --on-error skip"
    )


def most_prompt_tokens(model: CaptureModel, response_tokens: int | None) -> int | None:
    """Return how many tokens a prompt may have, room for a response left; None for no limit."""
    return None if model.context is None else model.context - (response_tokens or 0)


def _small_picture_tokens(processor: Any) -> int:
    picture = Picture(Image.new("RGB", _SMALL_PICTURE), "")
    inputs = make_inputs(processor, [Query(0, 0, "", QUERY_PLACEHOLDER)], [picture])
    return int(inputs["attention_mask"].sum())


def _stand_ins(processor: Any) -> Collection[str]:
    named = (getattr(processor, name, None) for name in _STANDS_FOR_A_PICTURE)
    return [text for text in named if isinstance(text, str) and text]
