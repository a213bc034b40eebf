"""The columns that annotations and answers add to the samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import pyarrow as pa

from builder.labels.amber import AmberLabels, Relations, amber_labels
from builder.labels.annotations import Annotations, other_columns
from builder.labels.answers import answer_of
from builder.labels.lemmas import check_lemmas
from builder.labels.mentions import KnownWords, find_mentions, known_words
from llava_amber_activations.store.samples import SampleRecord

_WORDS = pa.list_(pa.string())
MENTIONS_TYPE = pa.list_(
    pa.struct(
        [
            ("word", pa.string()),
            ("annotated", pa.string()),
            ("hallucinated", pa.bool_()),
            ("first_position", pa.int32()),
            ("last_position", pa.int32()),
        ]
    )
)


def label_columns(
    records: Sequence[SampleRecord],
    annotations: Annotations,
    relations: Relations | None = None,
    answers: Mapping[int, str] | None = None,
) -> pa.Table:
    """Return the labels of samples, a row for each; null where nothing is known.

    Which columns there are, and their types, the annotations' file alone decides, and whether
    answers are given: `truth`, `hallu`, `mentions` where it has lists of words; `truth_answer`,
    `dimension`, `answer`, `correct` where it has yes or no; `given_response`; and each key that is
    not AMBER's.

    Args:
        answers: by the samples' ids; they are labelled, and the captured ones are not.

    Raises:
        ActivationsError: an annotation is not of its sample, cannot be a column, or the extra
            `labels` is not installed where words are looked for.
    """
    labels = {
        id_: amber_labels(entry, annotations.name_of(id_))
        for id_, entry in annotations.by_id.items()
    }
    of_samples = [labels.get(record.id, AmberLabels()) for record in records]
    texts = [record.response if answers is None else answers.get(record.id) for record in records]
    columns: dict[str, pa.Array] = {}
    if answers is not None:
        columns["given_response"] = pa.array(texts, pa.string())
    if any(each.truth is not None or each.hallu is not None for each in labels.values()):
        columns["truth"] = pa.array([each.truth for each in of_samples], _WORDS)
        columns["hallu"] = pa.array([each.hallu for each in of_samples], _WORDS)
    if any(each.truth_answer is not None for each in labels.values()):
        said = [
            None if text is None or each.truth_answer is None else answer_of(text)
            for text, each in zip(texts, of_samples, strict=True)
        ]
        right = [each.truth_answer for each in of_samples]
        columns["truth_answer"] = pa.array(right, pa.string())
        columns["dimension"] = pa.array([each.dimension for each in of_samples], pa.string())
        columns["answer"] = pa.array(said, pa.string())
        columns["correct"] = pa.array(
            [None if a is None else a == b for a, b in zip(said, right, strict=True)], pa.bool_()
        )
    if "truth" in columns:
        check_lemmas()
        known = known_words(relations)
        columns["mentions"] = pa.array(
            [
                _mentions(record, text, each, known)
                for record, text, each in zip(records, texts, of_samples, strict=True)
            ],
            MENTIONS_TYPE,
        )
    return pa.table(columns | other_columns(records, annotations))


def _mentions(
    record: SampleRecord, text: str | None, labels: AmberLabels, known: KnownWords
) -> list[dict[str, object]] | None:
    """Return a sample's mentions, in the answer's tokens where it is the captured one."""
    if text is None or (labels.truth is None and labels.hallu is None):
        return None
    pieces: tuple[str, ...] = ()
    is_captured = record.response is not None and text.strip() == record.response
    if is_captured and record.tokens is not None and record.response_start is not None:
        pieces = record.tokens[record.response_start :]
        # The same text, but for what surrounds it and tokens that are none.
        text = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    start = record.response_start or 0
    return [
        {
            "word": mention.word,
            "annotated": mention.annotated,
            "hallucinated": mention.hallucinated,
            "first_position": start + bisect_right(ends, mention.start) if pieces else None,
            "last_position": start + bisect_right(ends, mention.stop - 1) if pieces else None,
        }
        for mention in find_mentions(text, labels, known)
    ]
