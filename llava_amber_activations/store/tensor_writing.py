"""A safetensors file written from where its tensors lie, each hashed and checked on its way.

The format is https://github.com/huggingface/safetensors#format: eight bytes with the length of a
JSON header, the header, the tensors. The header holds their checksums, which are known last: room
is kept for it, and it is written last. The bytes are those that `safetensors` itself writes: widest
dtypes first, names in order, the header filled up with spaces to a multiple of eight.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch

from llava_amber_activations.files.write_errors import write_errors

MOST_THREADS = 4
# What is hashed, checked and written one after the other stays in a core's cache meanwhile.
_BLOCK_BYTES = 1 << 20
# What safetensors calls them, in its own order: the wider first.
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = tuple(_NAMES.values())
_LENGTH_BYTES = 8


class BlockCheck(Protocol):
    """Looks at each block of rows on its way to the file."""

    def look(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Look at rows `start` … of a tensor; called by several threads."""

    def conclude(self) -> None:
        """Raise what was found, when all has been looked at, before the file is one."""


@dataclass(frozen=True)
class _Placed:
    """A tensor and where it lies in the file.

    Attributes:
        parts: its rows, in order.
        start: from the end of the header.
    """

    name: str
    parts: tuple[torch.Tensor, ...]
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


def write_safetensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
    metadata_of: Callable[[Mapping[str, str]], Mapping[str, str]],
    check: BlockCheck | None = None,
) -> None:
    """Write a safetensors file to `path`, which is not there yet.

    Args:
        tensors: contiguous, on the CPU; each one tensor, or its rows in several, at least one.
        metadata_of: gives the file's metadata from the SHA-256 of each tensor's bytes, by its name;
            how long it is depends on the names alone.
        check: looks at all rows.

    Raises:
        OSError: the file cannot be written.
        ValueError: a tensor is not contiguous.
    """
    placed = _place(tensors)
    room = len(_header(placed, metadata_of({each.name: "0" * 64 for each in placed})))
    stopped = Event()
    with write_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # hashlib, the disk and torch leave the interpreter to other threads.
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
            begun = [
                threads.submit(_write_tensor, descriptor, room, each, check, stopped)
                for each in placed
            ]
            try:
                digests = [each.result() for each in begun]
            finally:
                stopped.set()
        if check is not None:
            check.conclude()
        sha256 = {each.name: digest for each, digest in zip(placed, digests, strict=True)}
        header = _header(placed, metadata_of(sha256))
        assert len(header) == room
        _write_at(descriptor, memoryview(header), 0)
    finally:
        os.close(descriptor)


def _place(tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]]) -> list[_Placed]:
    unplaced = []
    for name, given in tensors.items():
        parts = (given,) if isinstance(given, torch.Tensor) else tuple(given)
        if not all(part.is_contiguous() for part in parts):
            raise ValueError(f"{name} is a non contiguous tensor")
        rows, *width = parts[0].shape
        shape = (sum(len(part) for part in parts) if len(parts) > 1 else rows, *width)
        dtype = _NAMES[parts[0].dtype]
        unplaced.append((name, parts, shape, dtype))
    unplaced.sort(key=lambda each: (_ORDER.index(each[3]), each[0]))
    ends = list(accumulate(sum(part.nbytes for part in parts) for _, parts, _, _ in unplaced))
    return [
        _Placed(*each, start, stop)
        for each, start, stop in zip(unplaced, [0, *ends], ends, strict=False)
    ]


def _header(placed: Sequence[_Placed], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the header."""
    value: dict[str, Any] = {"__metadata__": dict(metadata)}
    for each in placed:
        offsets = [each.start, each.stop]
        value[each.name] = {"dtype": each.dtype, "shape": each.shape, "data_offsets": offsets}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_tensor(
    descriptor: int, room: int, placed: _Placed, check: BlockCheck | None, stopped: Event
) -> str:
    """Write a tensor where it belongs, and return the SHA-256 of its bytes."""
    digest = hashlib.sha256()
    row, offset = 0, room + placed.start
    try:
        for rows in _blocks(placed.parts):
            # Another thread has failed: nothing of this file will stay.
            if stopped.is_set():
                break
            if check is not None:
                check.look(placed.name, row, rows)
            block: memoryview = rows.reshape(-1).view(torch.uint8).numpy().data
            digest.update(block)
            _write_at(descriptor, block, offset)
            row += len(rows)
            offset += len(block)
    except BaseException:
        stopped.set()
        raise
    return digest.hexdigest()


def _blocks(parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield rows, a block at a time: large parts as they lie, small ones put together."""
    held: list[torch.Tensor] = []
    held_bytes = 0
    for part in parts:
        if held and held_bytes + part.nbytes > _BLOCK_BYTES:
            yield torch.cat(held) if len(held) > 1 else held[0]
            held, held_bytes = [], 0
        if part.nbytes <= _BLOCK_BYTES:
            held.append(part)
            held_bytes += part.nbytes
        else:
            yield from part.split(max(1, _BLOCK_BYTES * len(part) // part.nbytes))
    if held_bytes:
        yield torch.cat(held) if len(held) > 1 else held[0]


def _write_at(descriptor: int, block: memoryview, offset: int) -> None:
    while block:
        written = os.pwrite(descriptor, block, offset)
        block, offset = block[written:], offset + written
