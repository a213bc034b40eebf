"""What is joined to the samples' own columns: answers to read, annotations, answers of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from builder.labels.amber import read_relations
from builder.labels.annotations import GIVEN_ANSWER, read_annotations
from builder.labels.answers import read_answers
from builder.labels.columns import label_columns
from builder.labels.entries import check_joined
from builder.samples.asked import SamplesAsked
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.store.samples import SampleRecord


def joined_columns(
    records: Sequence[SampleRecord], asked: SamplesAsked, *, shown: bool = True
) -> pa.Table:
    """Return the columns that answers to read and the files that were asked for give.

    A row for each record; without columns where there are none.

    Args:
        shown: whether this process says how many annotations are of no sample.

    Raises:
        ActivationsError: a file cannot be read, does not fit the samples, or the samples are of
            several sources in which an id stands for more than one of them.
    """
    given = {}
    if any(record.answer is not None for record in records):
        given[GIVEN_ANSWER] = pa.array([record.answer for record in records], pa.string())
    if asked.annotations is None:
        return pa.table(given)
    _check_one_source(records, asked.annotations)
    ids = {record.id for record in records}
    annotations = read_annotations(asked.annotations)
    check_joined(annotations.by_id, ids, asked.annotations, "annotations", shown=shown)
    answers = None
    if asked.answers is not None:
        answers = read_answers(asked.answers)
        check_joined(answers, ids, asked.answers, "answers", shown=shown)
    relations = None
    if asked.relations is not None:
        relations = read_relations(asked.relations, asked.safe_words)
    labels = label_columns(records, annotations, relations, answers)
    return pa.table({**given, **dict(zip(labels.column_names, labels.columns, strict=True))})


def _check_one_source(records: Sequence[SampleRecord], annotations: Path) -> None:
    """Check that an id is of one source, where several were mixed.

    Raises:
        ActivationsError: it is not.
    """
    sources: dict[int, str | None] = {}
    for record in records:
        other = sources.setdefault(record.id, record.source)
        if other != record.source:
            raise ActivationsError(
                f"{annotations} is joined by id, and the id {record.id} is of a sample of {other} "
                f"and of one of {record.source}: number the samples of the sources apart, or build "
                "the mixture without --annotations"
            )
