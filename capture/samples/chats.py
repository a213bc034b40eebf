"""What a sample asks, and what it gives to read: a text, or a chat of several turns.

Chats are read in the two forms that data sets have them in: `role` and `content`, and `from` and
`value` with `human` and `gpt` (ShareGPT's, which LLaVA's own data has).
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.store.samples import Turn

SYSTEM_ROLE, USER, ASSISTANT = "system", "user", "assistant"

_ROLES = {"human": USER, "gpt": ASSISTANT}
# What LLaVA's data writes into a user's turn where the picture goes.
_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Chat:
    """What a prompt is made of: samples that have the same one have the same prompt.

    Attributes:
        turns: a system's turn perhaps, and those of user and assistant, the user's last.
        has_picture: whether there is a picture, which stands in the first of the user's turns.
        is_raw: whether the text of the one turn is read as it is, without the chat template.
    """

    turns: tuple[Turn, ...]
    has_picture: bool = False
    is_raw: bool = False

    @property
    def without_system(self) -> Chat:
        """The same chat without a system's turn."""
        turns = tuple(turn for turn in self.turns if turn.role != SYSTEM_ROLE)
        return replace(self, turns=turns)


@dataclass(frozen=True)
class Asked:
    """What an entry of a benchmark asks.

    Attributes:
        query: text of the last user's turn.
        history: the turns before it.
        answer: what the model is given to read as its answer, where the entry gives one.
        n_answers: how many the entry gives, of which `answer` is the first.
    """

    query: str
    history: tuple[Turn, ...] = ()
    answer: str | None = None
    n_answers: int = 0


def asked_of(value: Any, has_picture: bool, where: str) -> Asked:
    """Read what an entry asks: a text, or a list of turns.

    A chat that ends with the assistant's turn gives that as the answer.

    Args:
        has_picture: then LLaVA's `<image>` in the first of the user's turns is left out.
        where: the entry is, for an error's sentence, such as "'query' of entry 3 of q.json".

    Raises:
        ActivationsError: it is neither, or its turns are not those of a chat.
    """
    if isinstance(value, str):
        return Asked(value)
    if not isinstance(value, list) or not value:
        raise ActivationsError(
            f"{where} is {reprlib.repr(value)}, which is neither a text nor a list of turns, each "
            "with role and content"
        )
    turns = [_turn(turn, f"turn {number} of {where}") for number, turn in enumerate(value)]
    spoken = turns[1:] if turns[0].role == SYSTEM_ROLE else turns
    if not spoken or any(
        turn.role != (USER, ASSISTANT)[number % 2] for number, turn in enumerate(spoken)
    ):
        raise ActivationsError(
            f"{where} has turns of {', '.join(turn.role for turn in turns)[:80]}: after a system's "
            "turn, if there is one, those of user and assistant take turns, and the user begins"
        )
    if has_picture:
        first = len(turns) - len(spoken)
        turns[first] = replace(turns[first], text=_without_placeholder(turns[first].text))
    if turns[-1].role == USER:
        return Asked(turns[-1].text, tuple(turns[:-1]))
    given = answer_of(turns[-1].text, where)
    return Asked(turns[-2].text, tuple(turns[:-2]), given, 1)


def answer_of(value: Any, where: str) -> str:
    """Return the answer that an entry gives: a text, or the first of a list of texts.

    Raises:
        ActivationsError: it is neither, or says nothing; the message names `where`.
    """
    text = value[0] if isinstance(value, list) and value else value
    if not isinstance(text, str):
        raise ActivationsError(
            f"{where} is {reprlib.repr(value)}, which is neither a text nor a list of texts"
        )
    if not text.strip():
        raise ActivationsError(f"{where} is empty: give it an answer, or leave the entry out")
    return text


def with_answer(asked: Asked, value: Any, where: str) -> Asked:
    """Return what is asked with the answer that a key or a column gives.

    Raises:
        ActivationsError: as `answer_of`, or the chat has given one already.
    """
    if asked.answer is not None:
        raise ActivationsError(
            f"{where} is one answer, and the last turn of the chat another: end the chat with a "
            "user's turn, or leave --answer-column out"
        )
    n_answers = len(value) if isinstance(value, list) else 1
    return replace(asked, answer=answer_of(value, where), n_answers=n_answers)


def with_system(turns: Sequence[Turn], system: str | None) -> tuple[Turn, ...]:
    """Return turns that begin with a system's turn: their own, where they have one."""
    if system is None or (turns and turns[0].role == SYSTEM_ROLE):
        return tuple(turns)
    return (Turn(SYSTEM_ROLE, system), *turns)


def _turn(value: Any, where: str) -> Turn:
    if isinstance(value, dict):
        role, text = value.get("role", value.get("from")), value.get("content", value.get("value"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        if role in (SYSTEM_ROLE, USER, ASSISTANT) and isinstance(text, str):
            return Turn(role, text)
    raise ActivationsError(
        f"{where} is {reprlib.repr(value)}, which is not a turn: it has role (system, user or "
        "assistant) and content, both texts, or from and value"
    )


def _without_placeholder(text: str) -> str:
    before, found, after = text.partition(_PLACEHOLDER)
    if not found:
        return text
    return before.removesuffix("\n") + after if before else after.removeprefix("\n")
