"""Which forms of an English noun are the same word."""

from __future__ import annotations

from functools import lru_cache

from llava_amber_activations.extras import need_extras

# Plurals that no rule makes: how they end, and how their singular does.
_IRREGULAR = (
    *(("men", "man"), ("children", "child"), ("feet", "foot"), ("teeth", "tooth")),
    *(("geese", "goose"), ("mice", "mouse"), ("lice", "louse"), ("oxen", "ox")),
    *(("dice", "die"), ("i", "us"), ("ae", "a"), ("a", "um")),
)
_SIBILANTS = ("s", "x", "z", "ch", "sh", "o")
# No plural of one letter or two.
_LEAST_LETTERS = 4


def check_lemmas() -> None:
    """Check that what knows the lemmas is installed.

    Raises:
        ActivationsError: it is not.
    """
    need_extras("looking for the annotated words in answers", "labels")


@lru_cache(maxsize=1 << 16)
def noun_forms(word: str) -> tuple[str, ...]:
    """Return what a word may be a form of, the likeliest first: itself, and its singulars.

    Those of a regular plural follow the rules of spelling, several where these leave it open
    (`leaves`: `leaf`, `leave`). The library `simplemma` knows the others; of what it knows, only
    plurals are taken: it has no parts of speech, and gives `bear` for `bare`, and `light` for
    `lit`.

    Args:
        word: in small letters.
    """
    if len(word) >= _LEAST_LETTERS and word.endswith("s"):
        return (word, *_regular_singulars(word))
    lemma = _lemma(word)
    for ending, singular in _IRREGULAR:
        stem = word.removesuffix(ending)
        if stem != word and lemma == stem + singular:
            return word, lemma
    return (word,)


def _regular_singulars(word: str) -> list[str]:
    if word.endswith("ies"):
        return [word[:-3] + "y", word[:-1]]
    if word.endswith("ves"):
        return [word[:-3] + "f", word[:-3] + "fe", word[:-1]]
    if word.endswith("es") and word[:-2].endswith(_SIBILANTS):
        return [word[:-2], word[:-1]]
    return [] if word.endswith(("ss", "us", "is")) else [word[:-1]]


def _lemma(word: str) -> str:
    # It loads its dictionary when it is first asked: not before there is a word to look up.
    import simplemma

    return str(simplemma.lemmatize(word, lang="en"))
