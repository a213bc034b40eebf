"""JSON objects that carry their own checksum.

The last key, `self_sha256`, is the SHA-256 of all the other keys as canonical JSON:

    hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from llava_amber_activations.errors import ActivationsError

SEAL = "self_sha256"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its checksum."""
    others = {key: item for key, item in value.items() if key != SEAL}
    return {**others, SEAL: _seal_of(others)}


def check_seal(value: Mapping[str, Any], where: object, advice: str, *, required: bool) -> None:
    """Check an object's own checksum.

    Args:
        where: the file that it is from.
        advice: what to do about a wrong one.
        required: whether it may not be missing.

    Raises:
        ActivationsError: it is missing or wrong.
    """
    if SEAL not in value:
        if not required:
            return
        raise ActivationsError(f"{where} lacks its own checksum ({SEAL}): {advice}")
    others = {key: item for key, item in value.items() if key != SEAL}
    try:
        is_right = value[SEAL] == _seal_of(others)
    except RecursionError:  # json.loads goes deeper than json.dumps.
        is_right = False
    if not is_right:
        raise ActivationsError(
            f"{where} is not as it was written (its own checksum, {SEAL}, differs): {advice}"
        )


def _seal_of(others: Mapping[str, Any]) -> str:
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
