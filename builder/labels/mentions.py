"""Where an answer names what is annotated, and whether that is made up.

As AMBER's evaluation does (`inference.py`), a word of the answer is true where it is one of the
picture's `truth` or stands for one by `relation.json`; else made up, where it is one of `hallu`,
stands for one, or is any other word that `relation.json` knows, and no safe word. Without
relations, the words of the annotation alone are looked for. Each is found in any of its forms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from builder.labels.amber import AmberLabels, Relations
from builder.labels.lemmas import noun_forms

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_BETWEEN = re.compile(r"[\s-]+")

# Words that AMBER knows as nouns, and English seldom has as such. `inference.py` tags the parts of
# speech; here, `can` needs one of these before it, and the others are passed over.
_SELDOM_NOUNS = frozenset({"hot", "leave"})
_BEFORE_CAN = frozenset(
    (
        *("a", "the", "this", "that", "each", "another", "one", "empty", "open", "trash", "tin"),
        *("garbage", "rubbish", "waste", "recycling", "soda", "cola", "beer", "drink", "metal"),
        *("aluminum", "aluminium", "watering", "spray", "paint", "food"),
    )
)

# Of a word or several, the last in one of its forms.
_Key = tuple[str, ...]


@dataclass(frozen=True)
class Mention:
    """A word of an answer that is known.

    Attributes:
        word: as it stands there.
        annotated: the word of `truth` or `hallu` that it is or stands for; None where it is only
            known to be an object.
        hallucinated: whether it is made up.
        start, stop: its characters in the answer, the last one exclusive.
    """

    word: str
    annotated: str | None
    hallucinated: bool
    start: int
    stop: int


@dataclass(frozen=True)
class KnownWords:
    """What is looked for in every answer.

    Attributes:
        kin: as in `Relations`.
        objects: every word that the relations know.
        safe: those that are never taken for made up.
        longest: how many words the longest of them is.
    """

    kin: Mapping[str, Sequence[str]]
    objects: Mapping[_Key, str | None]
    safe: frozenset[str]
    longest: int


def known_words(relations: Relations | None) -> KnownWords:
    """Return what relations make known: nothing, where there are none."""
    if relations is None:
        return KnownWords({}, {}, frozenset(), 0)
    words = [word for key, kin in relations.kin.items() for word in (key, *kin)]
    objects = _index((word, None) for word in words)
    longest = max(map(len, objects), default=0)
    return KnownWords(relations.kin, objects, relations.safe, longest)


def find_mentions(text: str, labels: AmberLabels, known: KnownWords) -> list[Mention]:
    """Return the mentions in an answer, in its order.

    Of two that begin at one word the longer is taken.
    """
    true = _index(_with_kin(labels.truth or (), known))
    made_up = _index(_with_kin(labels.hallu or (), known))
    longest = max([known.longest, *map(len, true), *map(len, made_up)])
    parts = _parts(text)
    found, at = [], 0
    while at < len(parts):
        for n_parts in range(min(longest, len(parts) - at), 0, -1):
            mention = _mention(text, parts, at, n_parts, true, made_up, known)
            if mention is not None:
                found.append(mention)
                at += n_parts
                break
        else:
            at += 1
    return found


@dataclass(frozen=True)
class _Part:
    """A part of a word; `ice-cream` has two, of which the first opens it and the last closes it."""

    text: str
    start: int
    stop: int
    opens: bool
    closes: bool


def _parts(text: str) -> list[_Part]:
    parts = []
    for word in _WORD.finditer(text):
        start = word.start()
        for part in word[0].split("-"):
            stop = start + len(part)
            parts.append(
                _Part(part.lower(), start, stop, start == word.start(), stop == word.end())
            )
            start = stop + 1
    return parts


def _mention(
    text: str,
    parts: Sequence[_Part],
    at: int,
    n_parts: int,
    true: Mapping[_Key, str | None],
    made_up: Mapping[_Key, str | None],
    known: KnownWords,
) -> Mention | None:
    """Return the mention that is made up of these parts, where it is one."""
    own = parts[at : at + n_parts]
    if not (own[0].opens and own[-1].closes):
        return None
    if any(
        not _BETWEEN.fullmatch(text, before.stop, after.start) for before, after in pairwise(own)
    ):
        return None
    if n_parts == 1 and not _may_be_noun(own[0].text, parts[at - 1].text if at else ""):
        return None
    forms = noun_forms(own[-1].text)
    start, stop = own[0].start, own[-1].stop
    word = text[start:stop]
    for form in forms:
        key = (*(part.text for part in own[:-1]), form)
        if key in true:
            return Mention(word, true[key], False, start, stop)
        if key in made_up or key in known.objects:
            is_safe = not known.safe.isdisjoint(forms)
            return Mention(word, made_up.get(key), not is_safe, start, stop)
    return None


def _may_be_noun(word: str, before: str) -> bool:
    return word not in _SELDOM_NOUNS and (word != "can" or before in _BEFORE_CAN)


def _with_kin(words: Sequence[str], known: KnownWords) -> Iterable[tuple[str, str | None]]:
    """Return words, and after all of them those that stand for each."""
    own = [(word, word) for word in words]
    return [*own, *((kin, word) for word in words for kin in known.kin.get(word, ()))]


def _index(words: Iterable[tuple[str, str | None]]) -> dict[_Key, str | None]:
    """Return what each form of each word stands for; words themselves come before their forms."""
    split = [
        (tuple(part.lower() for part in _BETWEEN.split(word.strip())), of) for word, of in words
    ]
    index: dict[_Key, str | None] = {}
    for parts, of in split:
        index.setdefault(parts, of)
    for parts, of in split:
        for form in noun_forms(parts[-1]):
            index.setdefault((*parts[:-1], form), of)
    return index
