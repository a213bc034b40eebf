"""The query file of a benchmark, and the pictures that it names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image, UnidentifiedImageError

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


def image_path(image_dir: Path, query: Query) -> Path:
    """Return the path of a sample's picture, inside `image_dir`.

    The check is on the name alone: a query file comes from elsewhere and must not choose a path,
    but a link that the user has put into the folder may point wherever they like.

    Raises:
        ActivationsError: the name is absolute, or climbs out of the folder.
    """
    for flavour in (PurePosixPath(query.image), PureWindowsPath(query.image)):
        if flavour.is_absolute() or flavour.drive or ".." in flavour.parts or not flavour.parts:
            raise ActivationsError(
                f"the image '{query.image}' of sample {query.sample} leaves the image folder "
                f"{image_dir}: name pictures by their path inside it"
            )
    return image_dir / query.image


def check_images(queries: list[Query], image_dir: Path) -> None:
    """Check that every picture is there and is a picture, by its header, before hours are spent.

    Raises:
        ActivationsError: the first picture that is missing, outside the folder or unreadable.
    """
    if not image_dir.is_dir():
        raise ActivationsError(f"the image folder {image_dir} does not exist")
    checked: set[str] = set()
    for query in queries:
        if query.image in checked:
            continue
        path = image_path(image_dir, query)
        try:
            with Image.open(path):
                checked.add(query.image)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise unreadable_image(path, query, error) from None


def unreadable_image(path: Path, query: Query, error: Exception) -> ActivationsError:
    """Say that a picture is missing or cannot be read, and what to do."""
    missing = isinstance(error, FileNotFoundError)
    reason = "is missing" if missing else "cannot be read as a picture"
    return ActivationsError(
        f"the image {path} of sample {query.sample} {reason}: "
        "put it there, or leave the sample out with --on-error skip"
    )
