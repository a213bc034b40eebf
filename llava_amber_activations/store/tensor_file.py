"""Safetensors files that carry a checksum of each tensor, and one over what they say of themselves.

The header's metadata has one key, whose value is a JSON object: `format_version`, `sha256` (of each
tensor's bytes, by its name), whatever the kind of file adds, and `self_sha256` over all of it
(`sealed_json`). One key, because the order in which several are written is not defined, and equal
contents must be equal files. Format 1.0 had one `sha256` over all tensors in the order of their
names, or none, and no checksum over the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors, reason_of
from llava_amber_activations.files.whole import written_whole
from llava_amber_activations.formats.dtypes import SAFETENSORS_NAMES
from llava_amber_activations.formats.version import FORMAT_VERSION, check_format_version, has_seals
from llava_amber_activations.parsing.checked_values import check_sha256
from llava_amber_activations.parsing.sealed_json import SEAL, check_seal, sealed
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object
from llava_amber_activations.store.tensor_writing import BlockCheck, write_safetensors

# Read, hashed and looked at while it is in a processor's cache.
_PIECE_BYTES = 2**20
_TORCH_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "I32": torch.int32,
}

# What is shown each piece of a tensor that is read: the tensor's name, and its next values.
Look = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a file: bytes `start` … `stop`."""

    start: int
    stop: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Digests:
    """The checksums of a file's tensors, by their names."""

    sha256: dict[str, str]

    def __post_init__(self) -> None:
        for name, digest in self.sha256.items():
            check_sha256(f"sha256 of {name[:40]}", digest)


@dataclass(frozen=True)
class _DigestOfAll:
    """What format 1.0 had: the checksum of all tensors together."""

    sha256: str | None = None

    def __post_init__(self) -> None:
        check_sha256("sha256", self.sha256)


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
    key: str,
    header: Mapping[str, Any],
    check: BlockCheck | None = None,
) -> str:
    """Write tensors, whole or not at all; equal contents give equal bytes.

    Args:
        tensors: contiguous, on the CPU; each one tensor, or its rows in several.
        key: of the metadata.
        header: what the file says beside its checksums.
        check: looks at all rows on their way.

    Returns:
        The header's own checksum, which covers those of the tensors.
    """
    seal = ""

    def metadata_of(sha256: Mapping[str, str]) -> dict[str, str]:
        nonlocal seal
        in_order = {name: sha256[name] for name in sorted(sha256)}
        value = sealed({"format_version": FORMAT_VERSION, **header, "sha256": in_order})
        seal = str(value[SEAL])
        return {key: json.dumps(value)}

    with written_whole(path) as partial:
        write_safetensors(partial, tensors, metadata_of, check)
    return seal


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(_bytes_of(tensor)).hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    view: memoryview = tensor.contiguous().view(torch.uint8).numpy().data
    return view


def _place(said: Any, first: int) -> _Place:
    """Return where a tensor lies by what the header says of it; `first` is the tensors' byte 0."""
    start, stop = said["data_offsets"]
    return _Place(first + start, first + stop, _TORCH_DTYPES.get(said["dtype"], torch.uint8))


class TensorFile:
    """One such file, open for reading; nothing is read before it is asked for.

    Attributes:
        header: the metadata's JSON object; empty where the file has none.
        is_sealed: whether it has a checksum of its own and of each tensor: from format 1.1 on.
        identity: a checksum of what the file says of itself, those of its tensors included.

    Raises:
        FileNotFoundError: it is not there.
        ActivationsError: it is truncated, damaged, or another kind of file.
    """

    def __init__(self, path: Path, key: str, remedy: str) -> None:
        """Open `path` and check the header's own checksum.

        Args:
            key: of the metadata.
            remedy: what to do about a damaged file.
        """
        self.path = path
        self._remedy = remedy
        # What is there and may not be read is not damaged: it must not be deleted.
        if path.is_file():
            with read_errors(path), path.open("rb"):
                pass
        try:
            self._file = safe_open(path, framework="pt")
            text = (self._file.metadata() or {}).get(key, "{}")
            self.names = set(self._file.keys())
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError) as error:
            raise self.damaged(f"{type(error).__name__}: {reason_of(error)}") from None
        try:
            self.header = parse_json_object(text, "its header")
            self.is_sealed = "format_version" in self.header
            if self.is_sealed:
                version = self.header["format_version"]
                check_format_version(version, "its header")
                required = has_seals(version)
                check_seal(self.header, "its header", "it was changed", required=required)
        except ActivationsError as error:
            raise self.damaged(error) from None
        kind = _Digests if self.is_sealed else _DigestOfAll
        sha256 = self.read_header(kind).sha256
        self._sha256: Mapping[str, str] = sha256 if isinstance(sha256, dict) else {}
        self._sha256_of_all = sha256 if isinstance(sha256, str) else None
        if self.is_sealed and set(self._sha256) != self.names:
            raise self.damaged("its tensors are others than those that it has checksums of")
        self.identity = self.header.get(SEAL) or hashlib.sha256(text.encode()).hexdigest()

    @property
    def has_checksums(self) -> bool:
        """Whether its tensors can be checked at all."""
        return bool(self._sha256) or self._sha256_of_all is not None

    def read_header(self, kind: Any) -> Any:
        """Read the header into a dataclass.

        Raises:
            ActivationsError: a key is missing, or a value is not of its type or range.
        """
        try:
            return read_object(kind, self.header, "its header", "such a file's")
        except ActivationsError as error:
            raise self.damaged(error) from None

    def damaged(self, why: object) -> ActivationsError:
        """Return the error that says that the file is damaged, why, and what to do."""
        return ActivationsError(f"{self.path} is damaged ({why}): {self._remedy}")

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read rows `start` … `stop` of a tensor.

        Raises:
            ActivationsError: the file has no such tensor.
        """
        self._check_name(name)
        rows: torch.Tensor = self._file.get_slice(name)[start:stop]
        return rows

    def check_form(self, name: str, dtype: str, *shape: int | None) -> None:
        """Check the dtype and the shape that the file says a tensor has; any length where None.

        Raises:
            ActivationsError: it is another.
        """
        self._check_name(name)
        tensor = self._file.get_slice(name)
        found = tuple(tensor.get_shape())
        fits = len(found) == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, found, strict=True)
        )
        wanted_dtype = SAFETENSORS_NAMES[dtype]
        if tensor.get_dtype() != wanted_dtype or not fits:
            wanted = ["?" if length is None else length for length in shape]
            raise self.damaged(
                f"{name} is {tensor.get_dtype()} {list(found)}, not {wanted_dtype} {wanted}"
            )

    def check_tensor(self, name: str, look: Look | None = None) -> None:
        """Check a tensor's bytes, all of them; in format 1.0 those of every tensor of the file.

        They are read a piece at a time: no more than a MiB of them is in memory.

        Args:
            look: is shown each piece on the way, a tensor's name and [values] of it, which it may
                not keep; also where there is no checksum.

        Raises:
            ActivationsError: they are not as they were written.
        """
        self._check_name(name)
        names, expected = [name], self._sha256.get(name)
        if self._sha256_of_all is not None:
            names, expected = sorted(self.names), self._sha256_of_all
        if expected is None and look is None:
            return
        digest = hashlib.sha256()
        for each in names:
            for piece in self._pieces(each):
                digest.update(_bytes_of(piece))
                if look is not None:
                    look(each, piece)
        if expected is not None and digest.hexdigest() != expected:
            whole = f"{name} is" if self.is_sealed else "it is"
            raise self.damaged(f"{whole} not as it was written, its SHA-256 differs")

    def _pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield a tensor's values, some at a time, in memory that the next ones overwrite."""
        place = self._places[name]
        # Not from the mapping, whose pages would stay until the file is closed.
        memory = torch.empty(min(_PIECE_BYTES, place.stop - place.start), dtype=torch.uint8)
        at = place.start
        with read_errors(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(at)
            while at < place.stop:
                piece = memory[: place.stop - at]
                self._fill(file, _bytes_of(piece))
                yield piece.view(place.dtype)
                at += len(piece)

    def _fill(self, file: Any, into: memoryview) -> None:
        while into:
            n = file.readinto(into)
            if not n:
                raise self.damaged("it was cut short while it was read")
            into = into[n:]

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise self.damaged(f"it has no tensor {name}")

    @cached_property
    def _places(self) -> dict[str, _Place]:
        """Where each tensor lies, which safetensors has checked and does not tell.

        A file is the size of its header (8 bytes, the lowest first), the header, the tensors'
        bytes: https://github.com/huggingface/safetensors#format
        """
        with read_errors(self.path), self.path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(size)
        try:
            header = json.loads(text)
            return {name: _place(header[name], 8 + size) for name in self.names}
        except (ValueError, LookupError, TypeError):
            raise self.damaged("it was changed while it was read") from None
