"""A benchmark's annotations, and the columns of those of its keys that are not AMBER's."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder.labels.amber import HALLU, TRUTH, TYPE, is_amber_type
from builder.labels.entries import read_entries
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import IMAGE, PICTURE, QUERY, SAMPLE_COLUMNS, SOURCE
from llava_amber_activations.store.samples import SampleRecord

# The answer that the model was given to read.
GIVEN_ANSWER = "given_answer"
# Of this project, beside the samples' own.
_LABELS = (
    *("truth", "hallu", "truth_answer", "dimension", "answer", "correct", "mentions"),
    *("given_response", GIVEN_ANSWER),
)
# Of the samples' own columns, those that a benchmark repeats.
_REPEATED = (IMAGE, QUERY)


@dataclass(frozen=True)
class Annotations:
    """A file of annotations.

    Attributes:
        by_id: each annotation's keys and values, without its `id`.
        path: of the file, for messages.
    """

    by_id: Mapping[int, Mapping[str, Any]]
    path: Path

    def name_of(self, id_: int) -> str:
        """What a message calls an annotation."""
        return f"the annotation of id {id_} in {self.path}"


def read_annotations(path: Path) -> Annotations:
    """Read annotations: a JSON list of objects, or one a line in a file named `.jsonl`.

    Raises:
        ActivationsError: as `read_entries`.
    """
    return Annotations(read_entries(path, "an annotation"), path)


def other_columns(records: Sequence[SampleRecord], annotations: Annotations) -> dict[str, pa.Array]:
    """Return a column for each key that is none of AMBER's, in the order in which they come.

    A column's type is that of the key's values in the whole file.

    Raises:
        ActivationsError: a key has the name of a column of ours, its values are of several types,
            or `image` or `query` is not that of the sample with the same id.
    """
    by_id = annotations.by_id
    _check_repeated(records, annotations)
    keys = dict.fromkeys(key for entry in by_id.values() for key in entry)
    for key in (TRUTH, HALLU, *_REPEATED):
        keys.pop(key, None)
    if all(is_amber_type(entry.get(TYPE)) for entry in by_id.values()):
        keys.pop(TYPE, None)
    columns = {}
    ours = {*_LABELS, *SAMPLE_COLUMNS, PICTURE}
    if any(record.source is not None for record in records):
        ours.add(SOURCE)
    for key in keys:
        if key in ours:
            more = ", or 'truth' where it is the right one of yes and no" if key == "answer" else ""
            raise ActivationsError(
                f"annotations in {annotations.path} have the key {key!r}, which is a column of "
                f"config samples: give it another name{more}"
            )
        type_ = _type_of([entry.get(key) for entry in by_id.values()], key, annotations.path)
        values = [by_id.get(record.id, {}).get(key) for record in records]
        columns[key] = pa.array(values, type_)
    return columns


def _check_repeated(records: Sequence[SampleRecord], annotations: Annotations) -> None:
    for record in records:
        entry = annotations.by_id.get(record.id, {})
        for key in _REPEATED:
            own = getattr(record, key)
            if entry.get(key, own) != own:
                raise ActivationsError(
                    f"{annotations.name_of(record.id)} is of the {key} "
                    f"{reprlib.repr(entry[key])}, and sample {record.sample} with that id of "
                    f"{own!r}: is the file of this benchmark?"
                )


def _type_of(values: Sequence[Any], key: str, path: Path) -> pa.DataType:
    try:
        return _without_null(pa.array(values).type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ActivationsError(
            f"the values of {key!r} in {path} cannot be one column ({reason}): give them one type"
        ) from None


def _without_null(type_: pa.DataType) -> pa.DataType:
    """Return a type that any reader knows, text in the place of what is always null."""
    if pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_list(type_):
        return pa.list_(_without_null(type_.value_type))
    if pa.types.is_struct(type_):
        if not type_.num_fields:
            raise ValueError("an object without keys")
        return pa.struct([(field.name, _without_null(field.type)) for field in type_])
    return type_
