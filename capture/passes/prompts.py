"""The prompts of all queries, made into tokens once and checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from capture.model.load import CaptureModel
from capture.passes.inputs import (
    QUERY_PLACEHOLDER,
    all_token_ids,
    answer_ids,
    make_inputs,
    placeholder_chat,
    token_ids,
)
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
        ids: of each sample, its prompt as tokens, a picture still what stands for it.
        answers: of each sample that has an answer to read, its tokens.
        unusable: of each sample that cannot be asked, why.
        picture_tokens: tokens that a small picture puts in the place of what stands for it, beyond
            that one.
        n_pictures: what stands for a picture in a prompt that has one.
    """

    ids: dict[int, list[int]]
    answers: dict[int, list[int]] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)
    picture_tokens: int = 0
    n_pictures: int = 1

    def n_read(self, query: Query) -> int:
        """Return how many tokens the model reads of a sample, its picture a small one."""
        of_picture = 0 if query.image is None else self.picture_tokens
        return len(self.ids[query.sample]) + of_picture + len(self.answers.get(query.sample, ()))


def make_prompts(queries: Sequence[Query], model: CaptureModel, most_tokens: int | None) -> Prompts:
    """Make the prompts of `queries`, and find those that cannot be asked.

    Those are the samples whose texts hold what stands for a picture, and those that are too long
    even on a small picture.

    Args:
        most_tokens: of a prompt with its picture and answer; None where there is no limit.

    Raises:
        ActivationsError: the model's chat template refuses a chat, or leaves a turn out.
    """
    processor = model.processor
    chats = all_token_ids(processor, dict.fromkeys(query.chat for query in queries))
    given = {query.sample: query.answer for query in queries if query.answer is not None}
    of_text = answer_ids(processor, given.values())
    answers = {sample: of_text[answer] for sample, answer in given.items()}
    n_pictures = n_picture_tokens = 0
    if any(query.image is not None for query in queries):
        placeholder = token_ids(processor, placeholder_chat())
        n_pictures = placeholder.count(model.image_token_id)
        n_picture_tokens = _small_picture_tokens(processor) - len(placeholder)
    ids = {query.sample: chats[query.chat] for query in queries}
    prompts = Prompts(ids, answers, {}, n_picture_tokens, n_pictures)
    stand_ins = _stand_ins(processor)
    for query in queries:
        texts = [*(turn.text for turn in query.chat.turns), query.answer or ""]
        held = next((text for text in stand_ins if any(text in each for each in texts)), None)
        expected = 0 if query.image is None else n_pictures
        tokens = [*ids[query.sample], *answers.get(query.sample, ())]
        if held is not None or tokens.count(model.image_token_id) != expected:
            prompts.unusable[query.sample] = (
                f"the query of sample {query.sample} holds {held or 'a token'!r}, which stands for "
                "a picture's own tokens in a prompt: take it out, or leave the sample out with "
                "--on-error skip"
            )
        elif most_tokens is not None and prompts.n_read(query) > most_tokens:
            n_read = prompts.n_read(query)
            prompts.unusable[query.sample] = too_long(query, n_read, most_tokens)
    return prompts


def least_rows(prompts: Prompts, queries: Iterable[Query], settings: CaptureSettings) -> int:
    """Return how many rows samples have in all: exact where every picture has the same tokens.

    A picture that has more than a small one gives more rows, and so does a generated response,
    which is counted as one token.
    """
    total = 0
    for query in queries:
        if query.sample in prompts.unusable:
            continue
        has_picture = query.image is not None
        n_image = prompts.n_pictures + prompts.picture_tokens if has_picture else 0
        n_answer = len(prompts.answers.get(query.sample, ()))
        n_all = prompts.n_read(query)
        n_text = n_all - n_image - n_answer
        found = {"all": n_all, "image": n_image, "text": n_text, "answer": n_answer}
        n_rows = found.get(settings.positions, 1)
        if settings.sample_positions is not None:
            n_rows = min(n_rows, settings.sample_positions)
        # The last token is the answer's, or else text: among those the draw may have taken it.
        last_is_of = "answer" if n_answer else "text"
        is_apart = settings.positions in {"image", "text", "answer"} - {last_is_of}
        total += n_rows + (settings.always is not None and is_apart)
    return total


def too_long(query: Query, n_tokens: int, most_tokens: int) -> str:
    """Say that what is read of a sample has more tokens than the model was made for."""
    parts = [
        *(["its picture"] if query.image is not None else []),
        *(["its answer"] if query.answer is not None else []),
    ]
    beside = f" with {' and '.join(parts)}" if parts else ""
    return (
        f"the prompt of sample {query.sample} has {n_tokens} tokens{beside}, and the "
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
