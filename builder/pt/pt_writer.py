"""A `.pt` file written by pieces: no more of its tensors is in memory than the piece at hand.

It holds what torch.save writes: an uncompressed zip archive (PKWARE's APPNOTE.TXT, 4.3.7 for the
headers in front, 4.3.12 to 4.3.16 for those at the end, 4.5.3 for what 32 bits cannot hold) of

    archive/data.pkl      what the file holds, as a pickle that names its storages
    archive/data/0 …      the values of each storage, each at a multiple of 64 bytes
    archive/version …     a few bytes each

Sizes are known from the beginning, and so is where everything lies. Checksums are known when the
last piece is there; headers are written then, those in front too.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_amber_activations.files.whole import written_whole

# Of the storages, as torch aligns them, so that they can be mapped.
_ALIGNMENT = 64
# torch's version of the archive's layout, and of what stands beside the storages.
_BEFORE = {
    ".format_version": b"1",
    ".storage_alignment": b"64",
    "byteorder": sys.byteorder.encode(),
}
_BEHIND = {"version": b"3\n"}
_STORAGES = {
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float32: torch.FloatStorage,
}

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_EXTRA = struct.Struct("<2H")
# What stands where 32 bits, or 16, cannot hold a number; the least that is taken for such a one.
_MARK_32, _MARK_16 = 2**32 - 1, 2**16 - 1
_TOO_LARGE = _MARK_32
_NEEDS_64 = 45
_EXTRA_64, _EXTRA_PADDING = 0x0001, 0x4246
# 1 January 1980, the first day of zip: equal contents are equal files.
_DAY = 0x21


@dataclass(frozen=True, eq=False)
class PtTensor:
    """A contiguous tensor of such a file, in a storage of its own, whose values come by pieces."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_values(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def stride(self) -> tuple[int, ...]:
        """Values from one to the next along each dimension."""
        return tuple(math.prod(self.shape[place + 1 :]) for place in range(len(self.shape)))


@dataclass(frozen=True, eq=False)
class _Storage:
    """What a tensor's pickle names in the place of its values."""

    tensor: PtTensor


class _Pickler(pickle.Pickler):
    """Pickles as torch.save does, by the protocol that it uses.

    Attributes:
        tensors: whose storages are named, in the order of their numbers.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[PtTensor] = []

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, PtTensor):
            return NotImplemented
        storage, shape = _Storage(obj), (*obj.shape,)
        hooks: OrderedDict[str, Any] = OrderedDict()
        arguments = storage, 0, shape, obj.stride, False, hooks
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        self.tensors.append(obj.tensor)
        kind = _STORAGES[obj.tensor.dtype]
        return "storage", kind, str(len(self.tensors) - 1), "cpu", obj.tensor.n_values


@dataclass
class _Record:
    """One record of the archive.

    Attributes:
        start, header: where its bytes and the header in front of them begin.
        n_written, crc: of what is there already.
    """

    name: bytes
    n_bytes: int
    header: int
    start: int
    n_written: int = 0
    crc: int = 0

    @property
    def needs_64(self) -> bool:
        """Whether a number of it does not fit 32 bits."""
        return max(self.n_bytes, self.header) >= _TOO_LARGE

    def extra_64(self, *numbers: int) -> bytes:
        """Return the extra field that holds what 32 bits cannot."""
        if not self.needs_64:
            return b""
        return _EXTRA.pack(_EXTRA_64, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)

    @property
    def version(self) -> int:
        """The version of zip that a reader needs, times ten; 0 is the first."""
        return _NEEDS_64 if self.needs_64 else 0

    @property
    def fields(self) -> tuple[int, ...]:
        """What both headers say of it behind its version: flags, method, time … and sizes."""
        size = _MARK_32 if self.needs_64 else self.n_bytes
        return 0, 0, 0, _DAY, self.crc, size, size


class PtWriter:
    """An open file; tensors are written side by side, each from its first value to its last."""

    def __init__(self, file: io.FileIO, value: Any) -> None:
        """Lay out a file that holds `value`.

        Args:
            value: lists and dicts of numbers, texts and `PtTensor`.
        """
        program = io.BytesIO()
        pickler = _Pickler(program)
        pickler.dump(value)
        self._file = file
        self._records: list[_Record] = []
        self._small: list[tuple[_Record, bytes]] = []
        self._end = 0
        for name, content in {"data.pkl": program.getvalue(), **_BEFORE}.items():
            self._small.append((self._lay_out(name, len(content)), content))
        self._storages = {
            tensor: self._lay_out(f"data/{number}", tensor.n_values * tensor.dtype.itemsize)
            for number, tensor in enumerate(pickler.tensors)
        }
        for name, content in _BEHIND.items():
            self._small.append((self._lay_out(name, len(content)), content))

    def write(self, tensor: PtTensor, values: torch.Tensor) -> None:
        """Write the next values of a tensor; others of the file may be written meanwhile.

        Args:
            values: contiguous, of the tensor's dtype, on the CPU.
        """
        assert values.dtype == tensor.dtype, "values of another dtype"
        self._append(self._storages[tensor], values.reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Write everything else, once every value is there."""
        for record, content in self._small:
            self._append(record, memoryview(content))
        directory = b""
        for record in self._records:
            assert record.n_written == record.n_bytes, "values are missing"
            self._put(_local_header(record), record.header)
            directory += _central_header(record)
        self._put(directory + self._last(len(directory)), self._end)

    def _lay_out(self, name: str, n_bytes: int) -> _Record:
        record = _Record(f"archive/{name}".encode(), n_bytes, self._end, 0)
        least = _LOCAL.size + len(record.name) + len(record.extra_64(0, 0)) + _EXTRA.size
        record.start = -(-(self._end + least) // _ALIGNMENT) * _ALIGNMENT
        self._end = record.start + n_bytes
        self._records.append(record)
        return record

    def _append(self, record: _Record, content: memoryview) -> None:
        assert record.n_written + len(content) <= record.n_bytes, "more values than there are"
        record.crc = zlib.crc32(content, record.crc)
        self._put(content, record.start + record.n_written)
        record.n_written += len(content)

    def _put(self, content: bytes | memoryview, at: int) -> None:
        left = memoryview(content)
        while left:
            n = os.pwrite(self._file.fileno(), left, at)
            left, at = left[n:], at + n

    def _last(self, directory_bytes: int) -> bytes:
        """Return what stands behind the directory."""
        n, start, last = len(self._records), self._end, b""
        if start >= _TOO_LARGE or n >= _MARK_16:
            last += _END_64.pack(
                *(b"PK\6\6", _END_64.size - 12, _NEEDS_64, _NEEDS_64, 0, 0, n, n),
                *(directory_bytes, start),
            )
            last += _LOCATOR_64.pack(b"PK\6\7", 0, start + directory_bytes, 1)
            n, start = min(n, _MARK_16), _MARK_32
        return last + _END.pack(b"PK\5\6", 0, 0, n, n, directory_bytes, start, 0)


def _local_header(record: _Record) -> bytes:
    """Return the header in front of a record, up to its first byte."""
    name, extra = record.name, record.extra_64(record.n_bytes, record.n_bytes)
    padding = record.start - record.header - _LOCAL.size - len(name) - len(extra) - _EXTRA.size
    extra += _EXTRA.pack(_EXTRA_PADDING, padding) + bytes(padding)
    header = _LOCAL.pack(b"PK\3\4", record.version, *record.fields, len(name), len(extra))
    return header + name + extra


def _central_header(record: _Record) -> bytes:
    """Return a record's entry of the directory."""
    name, extra = record.name, record.extra_64(record.n_bytes, record.n_bytes, record.header)
    header = _CENTRAL.pack(
        *(b"PK\1\2", record.version, record.version, *record.fields),
        *(len(name), len(extra), 0, 0, 0, 0, _MARK_32 if record.needs_64 else record.header),
    )
    return header + name + extra


@contextmanager
def open_pt(path: Path, value: Any) -> Iterator[PtWriter]:
    """Open a `.pt` file to write; it appears at `path` when the block ends without an error.

    Args:
        value: what the file holds, as of `PtWriter`.

    Raises:
        ActivationsError: the file cannot be written.
    """
    with written_whole(path) as partial, partial.open("wb", buffering=0) as file:
        writer = PtWriter(file, value)
        yield writer
        writer.finish()
