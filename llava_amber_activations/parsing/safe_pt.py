"""Reading `.pt` files of unknown origin: the one place that does.

A file is a zip archive (torch 1.6 and later), whose records have CRC-32 checksums:

    NAME/data.pkl   what the file holds, as a pickle
    NAME/data/0 …   the values of each storage

or, before, five pickles (a magic number, a version, the sizes of C's types, what the file holds,
the storages' keys) and then each storage: how many values as int64, and the values.

`load_pt` checks all of a file before it loads it. Loading is torch's, with `weights_only=True`.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import reason_of
from llava_amber_activations.parsing.pt_program import MOST_BYTES, read_program, refusal

# torch takes a second to import, and which files there are is asked before anything slow.
if TYPE_CHECKING:
    import torch

_READ_BYTES = 1 << 20
_ZIP_BEGINS, _PICKLE_BEGINS = b"PK", b"\x80"
# Its last two fields: bytes of the name and of the extra field that follow it.
_RECORD_HEADER = struct.Struct("<26xHH")
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_PROGRAMS = 5
_COUNT_BYTES = 8


def load_pt(path: Path) -> Any:
    """Check a `.pt` file, which reads all of it once, and load it on the CPU.

    It is refused unless it is plain dense tensors, numbers and texts in lists and dicts; no tensor
    claims more values than its storage holds, and no storage more than the file; and the checksums
    of a zip archive hold. Tensors of a zip archive stay on disk until they are used.

    Raises:
        ActivationsError: the file is missing, truncated, damaged, or holds anything else.
    """
    check_pt(path)
    return map_pt(path)


def map_pt(path: Path) -> Any:
    """Load a `.pt` file that `load_pt` has read before, without checking it again.

    Raises:
        ActivationsError: it is not the file that it was.
    """
    import torch

    with _pt_errors(path):
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_BEGINS)) == _ZIP_BEGINS
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def check_pt(path: Path, *, values: bool = True) -> bool:
    """Check a `.pt` file as `load_pt` does, and return whether it has checksums.

    Args:
        values: read the values too, and compare their checksums; if not, only what describes them.

    Raises:
        ActivationsError: as `load_pt`.
    """
    with _pt_errors(path), path.open("rb") as file:
        file_bytes = path.stat().st_size
        if file.read(len(_ZIP_BEGINS)) == _ZIP_BEGINS:
            return _check_zip(file, path, file_bytes, values)
        file.seek(0)
        _check_legacy(file, path, file_bytes)
        return False


def is_whole_pt(path: Path) -> bool:
    """Whether a file is there and ends as a zip archive does, as a copy that broke off does not."""
    return path.is_file() and zipfile.is_zipfile(path)


def floats_of(value: Any, path: Path, key: str) -> torch.Tensor:
    """Return a value of a loaded file as a tensor of floating-point numbers.

    Raises:
        ActivationsError: it is none, or it is empty; the message names `key` and `path`.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise ActivationsError(f"{path} has no tensor {key}: it is not a file of this layout")
    if not value.is_floating_point():
        raise ActivationsError(f"{key} of {path} is {value.dtype}: it needs floating-point numbers")
    if not value.numel():
        raise ActivationsError(
            f"{key} of {path} is empty, of the shape {list(value.shape)}: there is no value in it"
        )
    # torch keeps a sign to be turned as a mark on the tensor, which numpy does not know.
    return value.detach().resolve_neg()


@contextmanager
def _pt_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file inside the block into one sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ActivationsError(f"{path} is missing: copy it again") from None
    except (PermissionError, IsADirectoryError) as error:
        raise ActivationsError(f"{path} cannot be read: {error.strerror}") from None
    except ActivationsError:
        raise
    except Exception as error:
        # torch and zipfile raise whatever the first wrong byte of a damaged file leads to.
        raise ActivationsError(
            f"{path} is truncated or damaged ({reason_of(error)}): copy it again"
        ) from None


def _check_zip(file: BinaryIO, path: Path, file_bytes: int, values: bool) -> bool:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        programs = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(programs) != 1 or len(records) != len(archive.infolist()):
            raise refusal(path, "is a zip archive, but not one that torch.save wrote")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise refusal(path, "is a compressed zip archive, and torch.save writes plain ones")
        if sum(record.file_size for record in records.values()) > file_bytes:
            raise refusal(path, "is a zip archive of more bytes than it has")
        prefix = programs[0].removesuffix("data.pkl")
        # Written with torch.serialization.set_crc32_options(False): zeros in their place.
        has_checksums = any(record.CRC for record in records.values())
        if has_checksums:
            for name in records:
                if values or not name.startswith(f"{prefix}data/"):
                    _read_through(archive, name)
        if records[programs[0]].file_size > MOST_BYTES:
            raise refusal(path, f"describes its contents in more than {MOST_BYTES >> 20} MiB")
        file.seek(_start_of(file, records[programs[0]]))
        program = BytesIO(file.read(records[programs[0]].file_size))
    storages = read_program(program, path, file_bytes).storages
    sizes = {key: f"{prefix}data/{key}" for key in storages}
    for key, name in sizes.items():
        if name not in records or records[name].file_size != storages[key]:
            held = records[name].file_size if name in records else 0
            raise refusal(
                path,
                f"is truncated or damaged: its storage {key} is to have {storages[key]} bytes and "
                f"has {held}",
            )
    return has_checksums


def _read_through(archive: zipfile.ZipFile, name: str) -> None:
    """Read a record, at whose end zipfile compares the checksum."""
    with archive.open(name) as record:
        while record.read(_READ_BYTES):
            pass


def _start_of(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Return where a record's bytes begin: behind the header that stands before them."""
    file.seek(record.header_offset)
    name_bytes, extra_bytes = _RECORD_HEADER.unpack(file.read(_RECORD_HEADER.size))
    return record.header_offset + _RECORD_HEADER.size + int(name_bytes) + int(extra_bytes)


def _check_legacy(file: BinaryIO, path: Path, file_bytes: int) -> None:
    if file.read(1) != _PICKLE_BEGINS:
        raise refusal(path, "is no .pt file: it is neither a zip archive nor a pickle")
    file.seek(0)
    magic, version, _, program, keys = (
        read_program(file, path, file_bytes) for _ in range(_PROGRAMS)
    )
    if (magic.value, version.value) != (_MAGIC_NUMBER, _PROTOCOL_VERSION):
        raise refusal(path, "is a pickle, but not one that torch.save wrote")
    if sorted(keys.value) != sorted(program.storages):
        raise refusal(path, "is truncated or damaged: it holds other storages than it describes")
    end = file.tell() + sum(_COUNT_BYTES + n_bytes for n_bytes in program.storages.values())
    if end != file_bytes:
        raise refusal(
            path, f"is truncated or damaged: it has {file_bytes} bytes, and describes {end}"
        )
