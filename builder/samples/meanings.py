"""What the card says of the columns that were joined to the samples."""

from __future__ import annotations

import pyarrow as pa

_MEANINGS = {
    "truth": "words that are true of the picture",
    "hallu": "words that models are known to make up about it",
    "truth_answer": "what the right answer is: `yes` or `no`",
    "dimension": "what a question is about",
    "answer": "what the response says, `yes` or `no`; null where it says neither",
    "correct": "whether `answer` is `truth_answer`",
    "given_response": "what was labelled in the place of `response`",
    "given_answer": "what the model was given to read as its answer",
    "mentions": "words of the response that are annotated: where, and whether they are made up",
}


def meaning_of(name: str) -> str:
    """Say what a joined column is."""
    return _MEANINGS.get(name, "as the benchmark's annotations have it")


def readable_type(type_: pa.DataType) -> str:
    """Return what a person calls a type of Arrow."""
    if pa.types.is_list(type_):
        return f"list of {readable_type(type_.value_type)}"
    return "struct" if pa.types.is_struct(type_) else str(type_)
