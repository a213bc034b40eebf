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

from capture.samples.queries import Query, checked_id
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import files_sha256


@dataclass(frozen=True)
class DatasetPictures:
    """A column of pictures, read row by row as they are asked for.

    Attributes:
        dataset: name of the dataset.
        split: of it.
        column: that holds the pictures.
        commit: of a dataset of the Hub; None for a folder.
        files_sha256: one checksum of the files of a folder; None for a dataset of the Hub.
    """

    dataset: str
    split: str
    column: str
    commit: str | None = None
    files_sha256: str | None = None

    @property
    def recorded_revision(self) -> str | None:
        """What a recipe says of which state of the dataset it was."""
        return self.commit or self.files_sha256

    def content(self, query: Query) -> bytes:
        """Return the bytes of the picture in the sample's row."""
        value = _rows(self.dataset, self.split, self.column, self.commit)[query.sample][self.column]
        content = (value or {}).get("bytes")
        if content is None:
            path = (value or {}).get("path")
            if path is None:
                raise FileNotFoundError(self.name(query))
            content = Path(path).read_bytes()
        return bytes(content)

    def name(self, query: Query) -> str:
        """Return the row that the picture is in."""
        return f"in column {self.column} of row {query.sample} of {self.dataset} ({self.split})"


def read_dataset(
    name: str,
    split: str | None,
    image_column: str,
    query_column: str,
    max_samples: int | None = None,
) -> tuple[list[Query], str, DatasetPictures]:
    """Read the queries of a dataset; its pictures are read when they are needed.

    Args:
        name: of the dataset, without `hf:`.
        split: of it; the first that it has if None.

    Returns:
        The queries (whose id is the column `id` where that holds integers, else the row), one
        checksum of them all, and where the pictures are.

    Raises:
        ActivationsError: the dataset cannot be opened, or lacks a column.
    """
    datasets = _datasets()
    try:
        builder = datasets.load_dataset_builder(name)
        commit = None if Path(name).is_dir() else builder.hash
        split = split or datasets.get_dataset_split_names(name, revision=commit)[0]
        rows = datasets.load_dataset(name, split=split, revision=commit)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # Of a damaged file, datasets says what it was doing, and the cause what is wrong.
        causes = [error] if error.__cause__ is None else [error, error.__cause__]
        reason = ": ".join(" ".join(str(cause).split()) for cause in causes)
        raise ActivationsError(f"cannot open the dataset {name}: {reason}") from None
    for column in (image_column, query_column):
        if column not in rows.column_names:
            raise ActivationsError(
                f"the dataset {name} has no column {column!r}: it has {rows.column_names}; choose "
                "with --image-column and --query-column"
            )
    if not isinstance(rows.features[image_column], datasets.Image):
        raise ActivationsError(f"the column {image_column!r} of {name} does not hold pictures")
    if _dtype(rows, query_column) not in ("string", "large_string"):
        raise ActivationsError(
            f"the column {query_column!r} of {name} does not hold texts: choose one with "
            "--query-column"
        )
    n_rows = len(rows) if max_samples is None else min(max_samples, len(rows))
    if n_rows == 0:
        raise ActivationsError(f"the dataset {name} is empty: there is nothing to capture")
    where = f"{name} ({split})"
    texts = _column(rows, query_column, n_rows)
    ids: Sequence[Any] = range(n_rows)
    if "id" in rows.column_names and _dtype(rows, "id").startswith(("int", "uint")):
        ids = _column(rows, "id", n_rows)
    # It goes into the data: the path of a local folder is nobody else's business.
    shown = name if commit else Path(name).resolve().name
    queries = [
        Query(
            sample,
            checked_id(_present(id_, "id", sample, where), f"row {sample} of {where}"),
            f"{shown}/{split}/{sample}",
            _present(text, query_column, sample, where),
        )
        for sample, (id_, text) in enumerate(zip(ids, texts, strict=True))
    ]
    digest = hashlib.sha256(json.dumps([[q.id, q.query] for q in queries]).encode()).hexdigest()
    files = None if commit else _files_sha256(Path(name), builder)
    return queries, digest, DatasetPictures(name, split, image_column, commit, files)


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
