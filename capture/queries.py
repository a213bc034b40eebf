"""The query file of a benchmark."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_amber_activations.errors import ActivationsError

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Query:
    """One (image, query) pair: a sample.

    Attributes:
        sample: index in the query file, from 0.
        id: the benchmark's own number.
        image: path of the picture, relative to the image folder.
        query: the text that is asked.
    """

    sample: int
    id: int
    image: str
    query: str


def read_queries(path: Path, max_samples: int | None = None) -> tuple[list[Query], str]:
    """Read a query file in AMBER's form: `[{"id": 1, "image": "AMBER_1.jpg", "query": "…"}, …]`.

    A file named `.jsonl` holds one such object a line instead.

    Returns:
        The first `max_samples` queries, and the SHA-256 of the whole file.

    Raises:
        ActivationsError: the file is missing, not JSON, not a list, empty, or an entry lacks a key.
    """
    try:
        content = path.read_bytes()
        entries = _json_lines(content) if path.suffix == ".jsonl" else json.loads(content)
    except OSError as error:
        raise ActivationsError(f"cannot read the query file {path}: {error.strerror}") from None
    except ValueError as error:
        raise ActivationsError(f"the query file {path} is not JSON: {error}") from None
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise ActivationsError(f"the query file {path} holds a JSON {kind}, not a list of queries")
    if not entries:
        raise ActivationsError(f"the query file {path} is empty: there is nothing to capture")
    queries = [_query(sample, entry, path) for sample, entry in enumerate(entries[:max_samples])]
    return queries, hashlib.sha256(content).hexdigest()


def _json_lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def _query(sample: int, entry: Any, path: Path) -> Query:
    where = f"entry {sample} of {path}"
    if not isinstance(entry, dict):
        raise ActivationsError(f"{where} is not an object with id, image and query")
    for key, kind in (("id", int), ("image", str), ("query", str)):
        if key not in entry:
            raise ActivationsError(f"{where} lacks the key '{key}'")
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise ActivationsError(f"'{key}' of {where} is {entry[key]!r}, not {kind.__name__}")
    if not -_INT32_MAX <= entry["id"] <= _INT32_MAX:
        raise ActivationsError(f"'id' of {where} is {entry['id']}, which is no 32-bit integer")
    return Query(sample, entry["id"], entry["image"], entry["query"])
