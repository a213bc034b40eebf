"""The rows of config `samples`, a row group at a time, in the order of the query file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from builder.samples.pictures import Pictures
from llava_amber_activations.formats.columns import N_ROWS, PICTURE, SAMPLE, SAMPLE_COLUMNS, TOKENS
from llava_amber_activations.formats.schema import samples_schema
from llava_amber_activations.store.samples import SampleRecord

# Rows of a row group; with pictures as few as `datasets` itself writes, so that a viewer that shows
# a few rows reads little, and no more bytes of pictures, one that several samples share as often.
_MOST_ROWS = 1000
_MOST_ROWS_WITH_PICTURES = 100
_MOST_PICTURE_BYTES = 64 * 2**20

Columns = list[pa.Array]


def columns_of_records(
    records: Sequence[SampleRecord],
    joined: pa.Table,
    pictures: Pictures | None,
    *,
    sources: bool = False,
) -> Iterator[Columns]:
    """Yield the columns of `samples_schema`, a row group at a time, of captured samples.

    Args:
        joined: what was joined to the records, a row for each; without columns where nothing was.
        pictures: reads them, where they are to be in it.
        sources: whether each record's source is to be in it.

    Raises:
        ActivationsError: a picture is missing, or not the one that was captured.
    """
    own = samples_schema(1, pa.schema([]), pictures=False, sources=sources)
    with_pictures = samples_schema(1, pa.schema([]), pictures=True)
    start = 0
    for contents in _groups(records, pictures):
        some = records[start : start + len(contents)]
        columns = [
            pa.array([_value(each, field.name) for each in some], field.type) for field in own
        ]
        columns += joined.slice(start, len(some)).combine_chunks().columns
        if pictures is not None:
            values = [
                None if content is None else {"bytes": content, "path": record.image}
                for record, content in zip(some, contents, strict=True)
            ]
            columns.append(pa.array(values, with_pictures.field(PICTURE).type))
        yield columns
        start += len(some)


def _value(record: SampleRecord, name: str) -> object:
    value = getattr(record, name)
    return list(value) if name == TOKENS and value is not None else value


def columns_of_counts(rows_of_samples: Mapping[int, int]) -> Iterator[Columns]:
    """Yield the same columns of samples of which nothing but their rows is known.

    Args:
        rows_of_samples: by the samples' numbers, which ascend.
    """
    own = samples_schema(1, pa.schema([]), pictures=False)
    pairs = list(rows_of_samples.items())
    for start in range(0, len(pairs), _MOST_ROWS):
        samples, counts = zip(*pairs[start : start + _MOST_ROWS], strict=True)
        known = {SAMPLE: samples, N_ROWS: counts}
        yield [
            pa.array(known[name], own.field(name).type)
            if name in known
            else pa.nulls(len(counts), own.field(name).type)
            for name in SAMPLE_COLUMNS
        ]


def _groups(
    records: Sequence[SampleRecord], pictures: Pictures | None
) -> Iterator[list[bytes | None]]:
    """Yield the pictures of each row group's samples; None for each where there are to be none."""
    if pictures is None:
        for start in range(0, len(records), _MOST_ROWS):
            yield [None] * len(records[start : start + _MOST_ROWS])
        return
    group: list[bytes | None] = []
    size = 0
    for record in records:
        content = pictures.content(record)
        more = len(content or b"")
        if group and (len(group) == _MOST_ROWS_WITH_PICTURES or size + more > _MOST_PICTURE_BYTES):
            yield group
            group, size = [], 0
        group.append(content)
        size += more
    if group:
        yield group
