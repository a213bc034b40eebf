"""AMBER's own form of annotations: what is true of a picture, and what models make up about it.

https://github.com/junyangwang0410/AMBER, `data/annotations.json`:

    {"id": 1, "type": "generative", "truth": ["sky", "grass"], "hallu": ["cloud", "dog"]}
    {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"}

and `data/relation.json`, `{"road": ["path", "street"]}`: words that stand for a word. Together they
are the words that AMBER's evaluation knows.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.parsing.typed_json import parse_json_object

TRUTH, HALLU, TYPE = "truth", "hallu", "type"

# What AMBER's paper (arXiv 2311.07397) calls the dimension of each type of question.
_DIMENSIONS = {
    "generative": None,
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute-state",
    "discriminative-attribute-number": "attribute-number",
    "discriminative-attribute-action": "attribute-action",
    "discriminative-relation": "relation",
    "relation": "relation",
}


@dataclass(frozen=True)
class AmberLabels:
    """What AMBER's keys say of a sample, None where they say nothing.

    Attributes:
        truth: words that are true of the picture.
        hallu: words that models are known to make up about it.
        truth_answer: the right answer, `yes` or `no`.
        dimension: what the question is about.
    """

    truth: tuple[str, ...] | None = None
    hallu: tuple[str, ...] | None = None
    truth_answer: str | None = None
    dimension: str | None = None


@dataclass(frozen=True)
class Relations:
    """Words that AMBER's evaluation knows.

    Attributes:
        kin: of a word, those that stand for it as well.
        safe: words that are never taken for made up.
    """

    kin: Mapping[str, tuple[str, ...]]
    safe: frozenset[str] = field(default_factory=frozenset)


def amber_labels(annotation: Mapping[str, Any], where: str) -> AmberLabels:
    """Return what an annotation's keys `truth`, `hallu` and `type` say.

    Args:
        where: the annotation, for messages.

    Raises:
        ActivationsError: `truth` is neither a list of words nor yes or no, or `hallu` no list of
            words.
    """
    truth = annotation.get(TRUTH)
    words = answer = None
    if isinstance(truth, str) and truth.strip().lower() in ("yes", "no"):
        answer = truth.strip().lower()
    elif truth is not None:
        words = _words(truth, TRUTH, where, ", nor 'yes' or 'no'")
    hallu, kind = annotation.get(HALLU), annotation.get(TYPE)
    return AmberLabels(
        truth=words,
        hallu=None if hallu is None else _words(hallu, HALLU, where),
        truth_answer=answer,
        dimension=_DIMENSIONS.get(kind) if isinstance(kind, str) else None,
    )


def is_amber_type(value: object) -> bool:
    """Whether a value of the key `type` is one of AMBER's, or none at all."""
    return value is None or (isinstance(value, str) and value in _DIMENSIONS)


def _words(value: object, key: str, where: str, more: str = "") -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ActivationsError(
            f"'{key}' of {where} is {reprlib.repr(value)}, no list of words{more}: give it another "
            "name if it means something else"
        )
    return tuple(value)


def read_relations(path: Path, safe_words: Path | None = None) -> Relations:
    """Read AMBER's `relation.json`, and `safe_words.txt`, a word each line.

    Raises:
        ActivationsError: either cannot be read, or is not as AMBER's is.
    """
    with read_errors(path):
        content = path.read_bytes()
    kin = {}
    for word, value in parse_json_object(content, path).items():
        kin[word] = _words(value, word, str(path))
    safe: list[str] = []
    if safe_words is not None:
        with read_errors(safe_words):
            lines = safe_words.read_bytes().decode("utf-8", errors="replace").splitlines()
        safe = [line.strip() for line in lines if line.strip()]
    return Relations(kin, frozenset(safe))
