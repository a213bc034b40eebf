"""Whether an answer says yes or no, read by a few rules; and answers from a file.

AMBER's evaluation takes exactly `Yes` and `No`, and any other answer for a wrong one. Models say
more. In this order:

1. What leads up to an answer is left aside: "Answer:", "The answer to the question is", "Well,".
2. An answer that begins with a word for yes or no is that: "Yes, there is.", "Nope", "Not at all".
   It is none where what is said is both or neither: "Yes and no", "No idea".
3. An answer whose first sentence says that it cannot be told is none: "It is unclear whether …".
4. An answer of which a sentence ends with yes or no, and none with the other, is that: "So yes."
5. "There is" and "there are", at the beginning, are yes; "there is no" or "isn't" are no.
6. Any other is none: "The sky is blue." says neither.
"""

from __future__ import annotations

import re
import reprlib
from pathlib import Path

from builder.labels.entries import read_entries
from llava_amber_activations.errors import ActivationsError

_YES = "yes yeah yep yup correct true right indeed certainly definitely absolutely affirmative"
_NO = "no nope nah incorrect false wrong negative"
_NOT = ("not at all", "not really", "definitely not", "certainly not", "absolutely not")
_TO_THE_QUESTION = r"(?: to (?:the|this|your) question)?"
_LEAD = re.compile(
    rf"(?:(?:the )?(?:correct |right |final |short )?answer{_TO_THE_QUESTION}(?: is\b|\s*:)"
    r"|(?:response|assistant|a)\s*:|(?:well|so|hmm+)\s*,|sure\s*[,!.:]"
    r"|(?:based on|according to|in|from|looking at) (?:the|this) (?:image|picture|photo)\s*,)"
)
_BEGINS = {
    "no": re.compile(rf"(?:{'|'.join([*_NO.split(), *_NOT])})\b"),
    "yes": re.compile(rf"(?:{'|'.join(_YES.split())})\b"),
}
_NEITHER = re.compile(
    r"yes\s*(?:and|or|/|,)\s*no\b|no\s*(?:and|or|/)\s*yes\b|no (?:idea|way to|doubt|one can)\b"
    r"|right now\b"
)
_CANNOT_TELL = re.compile(
    r"\b(?:(?:can ?not|can't|could not|couldn't|unable to|(?:not possible|impossible|hard|"
    r"difficult) to) (?:\w+ )?(?:tell|say|determine|see|know|confirm|answer|judge|verify)"
    r"|not (?:\w+ )?(?:clear|sure|certain)|unclear|unsure|uncertain|(?:don't|do not) know)\b"
)
_ENDS = {answer: re.compile(rf"\b{answer}[')\s]*(?:[.!?\n]|$)") for answer in ("yes", "no")}
_NO_WORDS = " \n'-:,."
_THERE = re.compile(r"there(?: is| are| was| were|'s)\b")
_THERE_NOT = re.compile(
    r"there(?: (?:is|are|was|were)|'s) (?:no|not|none|nothing|neither)\b"
    r"|there (?:is|are|was|were)n't\b"
)


def answer_of(text: str) -> str | None:
    """Return whether a text says `yes` or `no`; None where it says neither."""
    text = text.replace("’", "'").lower()
    # Quotes, brackets and Markdown around a word say nothing.
    text = re.sub(r"[*_`\"“”#>\[\]()]", " ", text)
    text = re.sub(r"[^\S\n]+", " ", text).lstrip(_NO_WORDS)
    while lead := _LEAD.match(text):
        text = text[lead.end() :].lstrip(_NO_WORDS)
    if _NEITHER.match(text):
        return None
    for answer, pattern in _BEGINS.items():
        if pattern.match(text):
            return answer
    if _CANNOT_TELL.search(re.split(r"[.!?\n]", text, maxsplit=1)[0]):
        return None
    ends = [answer for answer, pattern in _ENDS.items() if pattern.search(text)]
    if ends:
        return ends[0] if len(ends) == 1 else None
    if _THERE_NOT.match(text):
        return "no"
    return "yes" if _THERE.match(text) else None


def read_answers(path: Path) -> dict[int, str]:
    """Read answers in AMBER's form, `[{"id": 1, "response": "…"}, …]`, by their ids.

    Raises:
        ActivationsError: as `read_entries`; or an answer has no text.
    """
    answers = {}
    for id_, entry in read_entries(path, "an answer").items():
        response = entry.get("response")
        if not isinstance(response, str):
            found = reprlib.repr(response)
            raise ActivationsError(f"'response' of id {id_} in {path} is {found}, no text")
        answers[id_] = response
    return answers
