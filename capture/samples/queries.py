"""The samples of a benchmark, and the query file that names them."""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capture.samples.chats import USER, Asked, Chat, asked_of, with_answer
from capture.settings import BenchmarkAsked
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.parsing.typed_json import parse_json, parse_json_lines
from llava_amber_activations.store.samples import Turn

QUERY_KEY, MESSAGES_KEY, IMAGE_KEY = "query", "messages", "image"


@dataclass(frozen=True)
class Query:
    """One sample: what is asked, and of which picture.

    Attributes:
        sample: index in the capture, from 0.
        id: the benchmark's own number.
        image: path of the picture, relative to the image folder; None where there is none.
        query: the text that is asked, of a chat that of its last turn.
        source: name of the query file or dataset, where several are mixed.
        history: the turns before it, the system's first.
        answer: what the model is given to read as its answer.
        is_raw: whether `query` is read as it is, without the chat template.
    """

    sample: int
    id: int
    image: str | None
    query: str
    source: str | None = None
    history: tuple[Turn, ...] = ()
    answer: str | None = None
    is_raw: bool = False

    @property
    def chat(self) -> Chat:
        """What the prompt is made of."""
        return Chat(
            (*self.history, Turn(USER, self.query)), self.image is not None, is_raw=self.is_raw
        )

    @property
    def picture(self) -> tuple[str | None, str] | None:
        """What tells the picture from those of other samples, whatever source they are of."""
        return None if self.image is None else (self.source, self.image)


@dataclass(frozen=True)
class Entries:
    """The samples of one query file or dataset, as they are there.

    Attributes:
        queries: in order, numbered from 0.
        sha256: one checksum of them all.
        n_first_of_several: of how many the answer is the first of several.
    """

    queries: list[Query]
    sha256: str
    n_first_of_several: int = 0


def read_queries(path: Path, max_samples: int | None = None) -> tuple[list[Query], str]:
    """Read a query file in AMBER's form: `[{"id": 1, "image": "AMBER_1.jpg", "query": "…"}, …]`.

    Returns:
        The first `max_samples` queries, and the SHA-256 of the whole file.

    Raises:
        ActivationsError: as `read_query_file`.
    """
    entries = read_query_file(BenchmarkAsked(path), max_samples)
    return entries.queries, entries.sha256


def read_query_file(asked: BenchmarkAsked, max_samples: int | None = None) -> Entries:
    """Read a query file: a JSON list of objects, or, named `.jsonl`, an object a line.

    Each has `id`, and `query`, a text, or `messages`, a list of turns; `image` where it has a
    picture; and the answer under the key that was asked for.

    Returns:
        The first `max_samples` queries; the checksum is that of the whole file, and of the keys
        where others than the usual ones were asked for.

    Raises:
        ActivationsError: the file is missing, not JSON, not a list, empty, or an entry lacks a key
            or has another value under it.
    """
    path = Path(asked.dataset)
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
    queries, n_first = [], 0
    for sample, entry in enumerate(entries[:max_samples]):
        query, of_entry = _query(sample, entry, asked, f"entry {sample} of {path}")
        queries.append(query)
        n_first += of_entry.n_answers > 1
    digest = hashlib.sha256(content)
    keys = (asked.image_column, asked.query_column)
    if keys != (None, None):
        digest.update(json.dumps(keys).encode())
    return Entries(queries, digest.hexdigest(), n_first)


def _query(sample: int, entry: Any, asked: BenchmarkAsked, where: str) -> tuple[Query, Asked]:
    if not isinstance(entry, dict):
        raise ActivationsError(f"{where} is not an object with id, image and query")
    image_key = asked.image_column or IMAGE_KEY
    image = None if asked.has_no_pictures else entry.get(image_key)
    query_key = asked.query_column or (
        MESSAGES_KEY if MESSAGES_KEY in entry and QUERY_KEY not in entry else QUERY_KEY
    )
    for key, kind in (("id", int), (image_key, str), (query_key, str)):
        if key == image_key and image is None:
            continue
        if key not in entry:
            raise ActivationsError(f"{where} lacks the key '{key}'")
        is_chat = key == query_key and isinstance(entry[key], list)
        if not is_chat and (not isinstance(entry[key], kind) or isinstance(entry[key], bool)):
            value = reprlib.repr(entry[key])
            raise ActivationsError(f"'{key}' of {where} is {value}, not {kind.__name__}")
    found = asked_of(entry[query_key], image is not None, f"'{query_key}' of {where}")
    if asked.answer_column is not None:
        if asked.answer_column not in entry:
            raise ActivationsError(f"{where} lacks the key '{asked.answer_column}'")
        named = f"'{asked.answer_column}' of {where}"
        found = with_answer(found, entry[asked.answer_column], named)
    query = Query(
        *(sample, checked_id(entry["id"], where), image, found.query),
        history=found.history,
        answer=found.answer,
        is_raw=asked.is_raw,
    )
    return query, found


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
