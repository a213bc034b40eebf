"""A benchmark's JSON about its samples: a list of objects, each with an `id` of its own."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_amber_activations.console.verbosity import note
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.parsing.typed_json import parse_json, parse_json_lines


def read_entries(path: Path, what: str) -> dict[int, dict[str, Any]]:
    """Read a JSON list of objects, or, named `.jsonl`, an object each line.

    Args:
        what: an entry is, such as "an annotation".

    Returns:
        Each entry's other keys, by its `id`.

    Raises:
        ActivationsError: the file cannot be read, is no such list or is empty, an entry has no `id`
            that is a whole number, or two have the same.
    """
    with read_errors(path):
        content = path.read_bytes()
    values = (parse_json_lines if path.suffix == ".jsonl" else parse_json)(content, path)
    if not isinstance(values, list):
        raise ActivationsError(f"{path} holds a JSON {type(values).__name__}, not a list")
    if not values:
        raise ActivationsError(f"{path} is empty: there is nothing to join")
    entries: dict[int, dict[str, Any]] = {}
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise ActivationsError(f"entry {number} of {path} is not an object: {what} is one")
        if "id" not in value:
            raise ActivationsError(f"entry {number} of {path} has no 'id', by which it is joined")
        id_ = value.pop("id")
        if type(id_) is not int:
            found = reprlib.repr(id_)
            raise ActivationsError(f"'id' of entry {number} of {path} is {found}, no whole number")
        if id_ in entries:
            raise ActivationsError(
                f"{path} has the id {id_} twice: leave one of them out, because {what} is joined "
                "by its id"
            )
        entries[id_] = value
    return entries


def check_joined(
    entries: Mapping[int, Any], ids: Iterable[int], path: Path, what: str, *, shown: bool = True
) -> None:
    """Check that entries are of these samples, and say how many are of none.

    Args:
        ids: of the samples.
        what: the entries are, such as "annotations".
        shown: whether this process says it.

    Raises:
        ActivationsError: not one of them is of a sample.
    """
    known = set(ids)
    n_joined = len(entries.keys() & known)
    if known and not n_joined:
        raise ActivationsError(
            f"none of the {len(entries)} {what} in {path} has the id of a sample: the samples' ids "
            f"are from {min(known)} to {max(known)}, and theirs from {min(entries)} to "
            f"{max(entries)}"
        )
    if shown and n_joined < len(entries):
        note(
            f"{path}: {n_joined} of {len(entries)} {what} are of samples of this store; the others "
            "are left aside"
        )
