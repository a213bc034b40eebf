"""Queries and pictures out of a dataset of the Hub, or of a folder that `datasets` opens.

The one place where a capture needs `datasets`, and only when it is asked for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from capture.samples.chats import asked_of, with_answer
from capture.samples.queries import IMAGE_KEY, QUERY_KEY, Entries, Query, checked_id
from capture.settings import NOT_GIVEN, BenchmarkAsked
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import files_sha256
from llava_amber_activations.formats.recipe import HF_PREFIX

_TEXTS = ("string", "large_string")
_QUERY_COLUMN, _ANSWER_COLUMN = "--query-column", "--answer-column"


@dataclass(frozen=True)
class DatasetState:
    """Which state of a dataset was opened.

    Attributes:
        name: of the dataset.
        split: of it.
        commit: of a dataset of the Hub; None for a folder.
        files_sha256: one checksum of the files of a folder; None for a dataset of the Hub.
    """

    name: str
    split: str
    commit: str | None = None
    files_sha256: str | None = None

    @property
    def recorded(self) -> str | None:
        """What a recipe says of it."""
        return self.commit or self.files_sha256


@dataclass(frozen=True)
class DatasetPictures:
    """A column of pictures, read row by row as they are asked for."""

    state: DatasetState
    column: str

    def content(self, query: Query) -> bytes:
        """Return the bytes of the picture in the sample's row."""
        state = self.state
        row = _rows(state.name, state.split, self.column, state.commit)[_row_of(query)]
        value = row[self.column] or {}
        content = value.get("bytes")
        if content is None:
            path = value.get("path")
            if path is None:
                raise FileNotFoundError(self.name(query))
            content = Path(path).read_bytes()
        return bytes(content)

    def name(self, query: Query) -> str:
        """Return the row that the picture is in."""
        return (
            f"in column {self.column} of row {_row_of(query)} of {self.state.name} "
            f"({self.state.split})"
        )


def read_dataset(
    asked: BenchmarkAsked, max_samples: int | None = None
) -> tuple[Entries, DatasetState, DatasetPictures | None]:
    """Read the queries of a dataset; its pictures are read when they are needed.

    Args:
        asked: `dataset` is the dataset's name, after `hf:`.

    Returns:
        The queries (whose id is the column `id` where that holds integers, else the row), which
        state of the dataset it is, and where the pictures are, if there are any.

    Raises:
        ActivationsError: the dataset cannot be opened, lacks a column, or a row has no text.
    """
    name = str(asked.dataset).removeprefix(HF_PREFIX)
    datasets = _datasets()
    try:
        builder = datasets.load_dataset_builder(name)
        commit = None if Path(name).is_dir() else builder.hash
        split = asked.split or datasets.get_dataset_split_names(name, revision=commit)[0]
        rows = datasets.load_dataset(name, split=split, revision=commit)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # Of a damaged file, datasets says what it was doing, and the cause what is wrong.
        causes = [error] if error.__cause__ is None else [error, error.__cause__]
        reason = ": ".join(" ".join(str(cause).split()) for cause in causes)
        raise ActivationsError(f"cannot open the dataset {name}: {reason}") from None
    image_column = _image_column(rows, asked, name)
    query_column = asked.query_column or QUERY_KEY
    for column, option in (
        (query_column, _QUERY_COLUMN),
        (asked.answer_column, _ANSWER_COLUMN),
    ):
        if column is not None and column not in rows.column_names:
            raise ActivationsError(
                f"the dataset {name} has no column {column!r}: it has {rows.column_names}; choose "
                f"with {option}"
            )
    n_rows = len(rows) if max_samples is None else min(max_samples, len(rows))
    if n_rows == 0:
        raise ActivationsError(f"the dataset {name} is empty: there is nothing to capture")
    where = f"{name} ({split})"
    values = _texts(rows, query_column, n_rows, name, _QUERY_COLUMN)
    answers = None
    if asked.answer_column is not None:
        answers = _texts(rows, asked.answer_column, n_rows, name, _ANSWER_COLUMN)
    ids: Sequence[Any] = range(n_rows)
    if "id" in rows.column_names and _dtype(rows, "id").startswith(("int", "uint")):
        ids = _column(rows, "id", n_rows)
    # It goes into the data: the path of a local folder is nobody else's business.
    shown = name if commit else Path(name).resolve().name
    queries, n_first = [], 0
    for sample, (id_, value) in enumerate(zip(ids, values, strict=True)):
        named = f"row {sample} of {where}"
        text = _present(value, query_column, sample, where)
        found = asked_of(text, image_column is not None, f"{query_column!r} of {named}")
        if answers is not None:
            answer = _present(answers[sample], str(asked.answer_column), sample, where)
            found = with_answer(found, answer, f"{asked.answer_column!r} of {named}")
        n_first += found.n_answers > 1
        query = Query(
            sample,
            checked_id(_present(id_, "id", sample, where), named),
            None if image_column is None else f"{shown}/{split}/{sample}",
            found.query,
            history=found.history,
            answer=found.answer,
            is_raw=asked.is_raw,
        )
        queries.append(query)
    files = None if commit else _files_sha256(Path(name), builder)
    state = DatasetState(name, split, commit, files)
    pictures = None if image_column is None else DatasetPictures(state, image_column)
    return Entries(queries, _digest(queries), n_first), state, pictures


def _image_column(rows: Any, asked: BenchmarkAsked, name: str) -> str | None:
    """Return which column has the pictures; None where there are to be none.

    Raises:
        ActivationsError: the column that was asked for has none, or another one has them.
    """
    if asked.has_no_pictures:
        return None
    pictures = [
        column
        for column, feature in rows.features.items()
        if isinstance(feature, _datasets().Image)
    ]
    column = asked.image_column or IMAGE_KEY
    if column in pictures:
        return column
    if column not in rows.column_names:
        if asked.image_column is None and not pictures:
            return None
        raise ActivationsError(
            f"the dataset {name} has no column {column!r}: it has {rows.column_names}; choose "
            f"with --image-column, or leave the pictures aside with --image-column {NOT_GIVEN}"
        )
    raise ActivationsError(f"the column {column!r} of {name} does not hold pictures")


def _row_of(query: Query) -> int:
    """Return the row of a sample, with which `read_dataset` ends the name of its picture."""
    return int(str(query.image).rpartition("/")[2])


def _digest(queries: Sequence[Query]) -> str:
    """Return a checksum of queries: of what each asks, and gives to read where it does."""
    contents: list[list[Any]] = []
    for query in queries:
        contents.append([query.id, query.query])
        if query.history or query.answer is not None:
            turns = [[turn.role, turn.text] for turn in query.history]
            contents[-1] += [turns, query.answer]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _texts(rows: Any, column: str, n_rows: int, name: str, option: str) -> Sequence[Any]:
    """Return a column of texts, or of lists, each of which is looked at when it is read.

    Raises:
        ActivationsError: it holds neither.
    """
    feature = rows.features[column]
    is_text = _dtype(rows, column) in _TEXTS
    if isinstance(feature, (_datasets().List, _datasets().LargeList)):
        items = feature.feature
        # Of answers there may be several; a query may be a list of turns.
        is_text = (
            str(getattr(items, "dtype", None)) in _TEXTS
            if option == _ANSWER_COLUMN
            else isinstance(items, dict)
        )
    if not is_text:
        raise ActivationsError(
            f"the column {column!r} of {name} does not hold texts: choose one with {option}"
        )
    return _column(rows, column, n_rows)


def _dtype(rows: Any, column: str) -> str:
    return str(getattr(rows.features[column], "dtype", None))


def _column(rows: Any, column: str, n_rows: int) -> Sequence[Any]:
    values: Sequence[Any] = rows.select_columns([column])[:n_rows][column]
    return values


def _present(value: Any, column: str, sample: int, where: str) -> Any:
    if value is None:
        raise ActivationsError(
            f"the column {column!r} of row {sample} of {where} is empty: every row needs its own"
        )
    return value


def _files_sha256(folder: Path, builder: Any) -> str:
    paths = {Path(path) for paths in builder.config.data_files.values() for path in paths}
    return files_sha256(folder.absolute(), paths)


@lru_cache(maxsize=1)
def _rows(name: str, split: str, column: str, commit: str | None) -> Any:
    datasets = _datasets()
    rows = datasets.load_dataset(name, split=split, revision=commit).select_columns([column])
    return rows.cast_column(column, datasets.Image(decode=False))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ActivationsError(
            "--dataset hf:NAME needs the package datasets: pip install datasets"
        ) from None
    return datasets
