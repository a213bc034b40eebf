"""Damage to `.pt` files: inside their zip with its checksums right, and values of other kinds.

A `.pt` file is a zip of a pickle (`data.pkl`), the bytes of each storage (`data/0` …) and a few
small files.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import torch

_BOMB_BYTES = 1 << 30


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def _zipped(
    entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in entries:
            file.writestr(zipfile.ZipInfo(name), data, compression)
        file.comment = comment
    return out.getvalue()


_INSIDE = ("flip", "replace", "truncate", "insert", "duplicate", "zero", "fill", "cut", "swap")


def _draw_entry(content: bytes, rng: random.Random) -> dict[str, Any]:
    from mutations import BYTES  # It imports this module.

    entries = _entries(content)
    pickles = [name for name in entries if name.endswith("data.pkl")]
    name = rng.choice([*entries, *pickles * 4])
    operation = rng.choice(_INSIDE)
    data = entries[name]
    arguments = BYTES[operation][0](data, range(len(data)), rng)
    return {"name": name, "operation": operation, "arguments": arguments}


def _apply_entry(content: bytes, name: str, operation: str, arguments: dict[str, Any]) -> bytes:
    from mutations import BYTES

    entries = _entries(content)
    entries[name] = BYTES[operation][1](entries[name], **arguments)
    return _zipped(list(entries.items()))


def _bomb(entries: list[tuple[str, bytes]]) -> bytes:
    """A storage of a gigabyte of zeros, in a megabyte."""
    changed = [
        (name, bytes(_BOMB_BYTES) if name.endswith("data/0") else data) for name, data in entries
    ]
    return _zipped(changed, zipfile.ZIP_DEFLATED)


_ZIPS: dict[str, Callable[[list[tuple[str, bytes]]], bytes]] = {
    "no pickle": lambda entries: _zipped([e for e in entries if not e[0].endswith(".pkl")]),
    "no storage": lambda entries: _zipped([e for e in entries if not e[0].endswith("data/0")]),
    "twice": lambda entries: _zipped([*entries, *entries]),
    "leads out": lambda entries: _zipped([("../../" + name, data) for name, data in entries]),
    "deflated": lambda entries: _zipped(entries, zipfile.ZIP_DEFLATED),
    "bzip2": lambda entries: _zipped(entries, zipfile.ZIP_BZIP2),
    "bomb": _bomb,
    "no entries": lambda entries: _zipped([]),
    "reversed": lambda entries: _zipped(entries[::-1]),
    "comment": lambda entries: _zipped(entries, comment=b"PK\x05\x06" * 100),
    "flat": lambda entries: _zipped([(name.partition("/")[2], data) for name, data in entries]),
    "other byte order": lambda entries: _zipped(
        [(name, b"big" if name.endswith("byteorder") else data) for name, data in entries]
    ),
    "huge version": lambda entries: _zipped(
        [(name, b"9" * 400 if name.endswith("version") else data) for name, data in entries]
    ),
}


def _tensors(value: Any) -> torch.Tensor:
    """Return the first tensor of a file's value."""
    while not isinstance(value, torch.Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


def _replaced(value: Any, make: Callable[[torch.Tensor], Any]) -> Any:
    """Put another value in place of the first tensor."""
    if isinstance(value, torch.Tensor):
        return make(value)
    if isinstance(value, dict):
        first = next(iter(value))
        return {**value, first: _replaced(value[first], make)}
    return [_replaced(value[0], make), *value[1:]]


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "expanded": lambda t: torch.zeros(1).expand(10**11, *t.shape[1:]),
    "expanded narrowly": lambda t: torch.ones(1).expand(t.shape),
    "negative": lambda t: -t,
    "nan": _with_nan,
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "int64": lambda t: t.long(),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "parameter": torch.nn.Parameter,
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.reshape(-1)[0],
    "narrow": lambda t: t[..., :-1],
    "wide": lambda t: torch.cat([t, t], -1),
    "transposed": lambda t: t.transpose(0, -1),
    "six dimensions": lambda t: t.reshape(1, 1, 1, *t.shape),
    "a view of more": lambda t: torch.cat([t, t])[: len(t)],
    "one row more": lambda t: torch.cat([t, t[:1]]),
    "text": lambda t: "a tensor",
    "none": lambda t: None,
    "list": lambda t: t.tolist(),
    "number": lambda t: 7,
    "no width": lambda t: t[..., :0],
    "reversed view": lambda t: t.flip(0),
}
_VALUES: dict[str, Callable[[Any], Any]] = {
    "a list": lambda value: [value],
    "an empty dict": lambda value: {},
    "none": lambda value: None,
    "text": lambda value: "x",
    "bare": _tensors,
    "other keys": lambda value: {f"{key}?": item for key, item in value.items()},
    "number keys": lambda value: dict(enumerate(value.values())),
    "dropped key": lambda value: dict(list(value.items())[1:]),
    "odd layers": lambda value: {
        key: {-1 if i == 0 else n: t for i, (n, t) in enumerate(item.items())}
        if isinstance(item, dict)
        else item
        for key, item in value.items()
    },
    "text layers": lambda value: {
        key: {str(n): t for n, t in item.items()} if isinstance(item, dict) else [item]
        for key, item in value.items()
    },
    "true layers": lambda value: {
        key: dict.fromkeys((True, False), next(iter(item.values())))
        if isinstance(item, dict)
        else (item,)
        for key, item in value.items()
    },
    "huge layers": lambda value: {
        key: {10**12 + n: t for n, t in item.items()} if isinstance(item, dict) else [item] * 300
        for key, item in value.items()
    },
    "nested": lambda value: {key: {"x": {"x": item}} for key, item in value.items()},
}


def _value(content: bytes, how: str) -> bytes:
    value = torch.load(io.BytesIO(content), weights_only=True)
    name = how.removeprefix("tensor ")
    changed = _replaced(value, _TENSORS[name]) if name != how else _VALUES[how](value)
    out = io.BytesIO()
    torch.save(changed, out)
    return out.getvalue()


def _old_zip(content: bytes) -> bytes:
    """The same value as torch wrote it before 1.6: no zip, no checksums."""
    value = torch.load(io.BytesIO(content), weights_only=True)
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _zip(content: bytes, how: str) -> bytes:
    if how == "old":
        return _old_zip(content)
    return _ZIPS[how](list(_entries(content).items()))


OPERATIONS = {
    "entry": (_draw_entry, _apply_entry),
    "zip": (lambda content, rng: {"how": rng.choice([*_ZIPS, "old", "old"])}, _zip),
    "value": (
        lambda content, rng: {
            "how": rng.choice([*(f"tensor {name}" for name in _TENSORS), *_VALUES])
        },
        _value,
    ),
}
