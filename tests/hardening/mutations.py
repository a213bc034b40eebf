"""Damage to files: drawn from a seed, written down so that it can be done again.

A mutation is a name of `OPERATIONS` and its arguments, all of it JSON. `draw` chooses one for a
file's bytes; `apply` does it. What is drawn is spread over the operations in turn, so that a few
draws try each of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mutations_json
import mutations_parquet
import mutations_pt
import mutations_safetensors


@dataclass(frozen=True)
class Mutation:
    """One damage: the name of an operation, and its arguments."""

    operation: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Missing:
    """The file is not there."""


class Folder:
    """A folder stands in the file's place."""


Damaged = bytes | Missing | Folder


def _place(content: bytes, region: range, rng: random.Random) -> int:
    stop = min(region.stop, len(content))
    return rng.randrange(region.start, stop) if region.start < stop else 0


def _block(content: bytes, region: range, rng: random.Random) -> dict[str, int]:
    start = _place(content, region, rng)
    return {"start": start, "stop": min(start + rng.choice((1, 4, 16, 64, 512)), len(content))}


def _draw_swap(content: bytes, region: range, rng: random.Random) -> dict[str, int]:
    size = rng.choice((1, 4, 16, 64))
    first, second = sorted(_place(content, region, rng) for _ in range(2))
    return {"first": first, "second": max(second, first + size), "size": size}


def _swap(content: bytes, first: int, second: int, size: int) -> bytes:
    one, other = content[first : first + size], content[second : second + size]
    between = content[first + size : second]
    return content[:first] + other + between + one + content[second + size :]


def _put(content: bytes, at: int, new: bytes, over: int) -> bytes:
    return content[:at] + new + content[at + over :]


# Each draws its arguments from the content, where in it, and a random generator; and does it.
_Draw = Callable[[bytes, range, random.Random], dict[str, Any]]
BYTES: dict[str, tuple[_Draw, Callable[..., Damaged]]] = {
    "flip": (
        lambda content, region, rng: {"at": _place(content, region, rng), "bit": rng.randrange(8)},
        lambda content, at, bit: _put(content, at, bytes([content[at] ^ 1 << bit]), 1),
    ),
    "replace": (
        lambda content, region, rng: {
            "at": _place(content, region, rng),
            "byte": rng.choice((0x00, 0xFF, 0x7F, 0x80, 0x0C, 0x1C, rng.randrange(256))),
        },
        lambda content, at, byte: _put(content, at, bytes([byte]), 1),
    ),
    "truncate": (
        lambda content, region, rng: {"to": _place(content, region, rng)},
        lambda content, to: content[:to],
    ),
    "insert": (
        lambda content, region, rng: {
            "at": _place(content, region, rng),
            "hex": rng.randbytes(rng.choice((1, 2, 8, 100))).hex(),
        },
        lambda content, at, hex: _put(content, at, bytes.fromhex(hex), 0),
    ),
    "duplicate": (
        _block,
        lambda content, start, stop: _put(content, stop, content[start:stop], 0),
    ),
    "zero": (
        _block,
        lambda content, start, stop: _put(content, start, bytes(stop - start), stop - start),
    ),
    "fill": (
        _block,
        lambda content, start, stop: _put(content, start, b"\x1c" * (stop - start), stop - start),
    ),
    "cut": (_block, lambda content, start, stop: content[:start] + content[stop:]),
    "swap": (_draw_swap, _swap),
    "append": (
        lambda content, region, rng: {"hex": rng.randbytes(rng.choice((1, 8, 1000))).hex()},
        lambda content, hex: content + bytes.fromhex(hex),
    ),
    "empty": (lambda content, region, rng: {}, lambda content: b""),
    "missing": (lambda content, region, rng: {}, lambda content: Missing()),
    "folder": (lambda content, region, rng: {}, lambda content: Folder()),
}
_STRUCTURED = {
    **mutations_json.OPERATIONS,
    **mutations_safetensors.OPERATIONS,
    **mutations_parquet.OPERATIONS,
    **mutations_pt.OPERATIONS,
}
# What is tried on a file of each form, besides its bytes; the oftener named, the oftener tried.
FORMS = {
    "json": [*["json"] * 14, "text"],
    "jsonl": [*["json_line"] * 10, "line", "line", "text"],
    "sums": ["line", "line", "path", "text"],
    "safetensors": [*["header_json"] * 6, "header_length", "inner_json", "inner_json"],
    "parquet_footer": [*["rewrite"] * 6, "schema_metadata"],
    "parquet_pages": [],
    "pt": [*["entry"] * 8, *["value"] * 6, "zip", "zip"],
}


def draw(form: str, content: bytes, number: int, rng: random.Random) -> Mutation:
    """Draw the mutation `number` of a file: of its bytes and of its structure in turn."""
    names = [*BYTES, *FORMS[form]]
    # A stride that shares no factor with the count visits them all, unlike ones one after another.
    stride = next(n for n in range(max(2, len(names) * 3 // 8), 99) if _coprime(n, len(names)))
    name = names[number * stride % len(names)]
    if name not in BYTES:
        return Mutation(name, _STRUCTURED[name][0](content, rng))
    regions = {
        "parquet_footer": mutations_parquet.footer_region,
        "parquet_pages": mutations_parquet.page_region,
        "safetensors": mutations_safetensors.region,
    }
    find = regions.get(form)
    region = range(len(content)) if find is None else find(content, rng)
    return Mutation(name, BYTES[name][0](content, region, rng))


def apply(content: bytes, mutation: Mutation) -> Damaged:
    """Return the damaged content."""
    known = BYTES.get(mutation.operation) or _STRUCTURED[mutation.operation]
    return known[1](content, **mutation.arguments)


def described(mutation: Mutation) -> str:
    """Say a mutation in one line."""
    return f"{mutation.operation} {json.dumps(mutation.arguments)}"


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
