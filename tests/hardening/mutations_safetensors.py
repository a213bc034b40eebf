"""Damage to safetensors: the header's length, its JSON, and the JSON inside its metadata.

Format: https://github.com/huggingface/safetensors, "Format": 8 bytes length, a JSON header, data.
"""

from __future__ import annotations

import json
import random
from typing import Any

from mutations_json import changed, draw_change

_LENGTHS = (0, 1, 2, 7, 2**20, 2**31, 2**32, 2**63, 2**64 - 1)


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _joined(header: str, data: bytes) -> bytes:
    raw = header.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + data


def region(content: bytes, rng: random.Random) -> range:
    """Return the length, the header or the data, the header as often as the data."""
    stop = 8 + int.from_bytes(content[:8], "little")
    return rng.choice((range(8), range(8, stop), range(stop, len(content)), range(len(content))))


def _draw_header(content: bytes, rng: random.Random) -> dict[str, Any]:
    return draw_change(_parts(content)[0], rng)


def _apply_header(content: bytes, path: list[Any], change: str, text: str) -> bytes:
    header, data = _parts(content)
    return _joined(changed(header, path, change, text, None), data)


def _inner(header: dict[str, Any]) -> tuple[str, Any] | None:
    """Return the first key of the metadata whose text is JSON, and that."""
    for key, text in header.get("__metadata__", {}).items():
        try:
            return key, json.loads(text)
        except ValueError:
            continue
    return None


def _draw_inner(content: bytes, rng: random.Random) -> dict[str, Any]:
    found = _inner(_parts(content)[0])
    return draw_change({} if found is None else found[1], rng)


def _apply_inner(content: bytes, path: list[Any], change: str, text: str) -> bytes:
    header, data = _parts(content)
    found = _inner(header)
    key, value = ("chunk", {}) if found is None else found
    inner = changed(value, path, change, text, None).encode("utf-8", "replace").decode()
    header.setdefault("__metadata__", {})[key] = inner
    return _joined(json.dumps(header, separators=(",", ":")), data)


def _length(content: bytes, value: int) -> bytes:
    return value.to_bytes(8, "little") + content[8:]


def _draw_length(content: bytes, rng: random.Random) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    return {"value": rng.choice((*_LENGTHS, size - 1, size + 1, size + 8, len(content)))}


OPERATIONS = {
    "header_json": (_draw_header, _apply_header),
    "inner_json": (_draw_inner, _apply_inner),
    "header_length": (_draw_length, _length),
}
