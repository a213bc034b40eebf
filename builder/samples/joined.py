"""What is joined to the samples: columns of annotations and of answers."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from builder.labels.amber import read_relations
from builder.labels.annotations import read_annotations
from builder.labels.answers import read_answers
from builder.labels.columns import label_columns
from builder.labels.entries import check_joined
from builder.samples.asked import SamplesAsked
from llava_amber_activations.store.samples import SampleRecord


def joined_columns(
    records: Sequence[SampleRecord], asked: SamplesAsked, *, shown: bool = True
) -> pa.Table:
    """Return the columns that the files that were asked for give, a row for each record.

    Args:
        shown: whether this process says how many annotations are of no sample.

    Raises:
        ActivationsError: a file cannot be read, or does not fit the samples.
    """
    if asked.annotations is None:
        return pa.table({})
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
    return label_columns(records, annotations, relations, answers)
