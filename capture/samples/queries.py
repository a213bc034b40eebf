"""The query file of a benchmark."""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.parsing.typed_json import parse_json, parse_json_lines


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
    named = f"the query file {path}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ActivationsError(f"cannot read {named}: {error.strerror}") from None
    parse = parse_json_lines if path.suffix == ".jsonl" else parse_json
    entries = parse(content, named)
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise ActivationsError(f"the query file {path} holds a JSON {kind}, not a list of queries")
    if not entries:
        raise ActivationsError(f"the query file {path} is empty: there is nothing to capture")
    queries = [_query(sample, entry, path) for sample, entry in enumerate(entries[:max_samples])]
    return queries, hashlib.sha256(content).hexdigest()


def _query(sample: int, entry: Any, path: Path) -> Query:
    where = f"entry {sample} of {path}"
    if not isinstance(entry, dict):
        raise ActivationsError(f"{where} is not an object with id, image and query")
    for key, kind in (("id", int), ("image", str), ("query", str)):
        if key not in entry:
            raise ActivationsError(f"{where} lacks the key '{key}'")
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            found = reprlib.repr(entry[key])
            raise ActivationsError(f"'{key}' of {where} is {found}, not {kind.__name__}")
    return Query(sample, checked_id(entry["id"], where), entry["image"], entry["query"])


def checked_id(value: int, where: str) -> int:
    """Return an id that the store's format can hold.

    Raises:
        ActivationsError: it is no 32-bit integer; the message names `where`.
    """
    if not -(2**31) <= value < 2**31:
        raise ActivationsError(
            f"'id' of {where} is {reprlib.repr(value)}, which is no 32-bit integer: number the "
            "queries anew"
        )
    return value
