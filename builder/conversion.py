"""The dataset folder that a folder of `.pt` files is pushed as, made anew when they change.

PT_DIR                       the `.pt` files
PT_DIR-dataset               what they convert to, kept, so that an interrupted push goes on with it
.PT_DIR-dataset.source.json  what it was made from: each file's size and time; its manifest's sha256
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from builder.asked.files_to_take import is_pt_folder
from builder.asked.new_place import clear_leftovers
from builder.import_pt import import_pt
from builder.pt.export_note import EXPORT_FILE
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.checksums import sha256_of
from llava_amber_activations.files.leftovers import is_empty_or_missing, sweep
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.formats.dataset_folder import MANIFEST_FILE
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object


@dataclass(frozen=True)
class FileStamp:
    """What tells a changed file: its size, and the time of its last change in nanoseconds."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Conversion:
    """What a dataset folder was made from.

    Attributes:
        pt_files: each file, by its path in the folder of `.pt` files.
        manifest_sha256: of the dataset folder's manifest; None while the folder is being made.
    """

    pt_files: dict[str, FileStamp]
    manifest_sha256: str | None = None


def dataset_to_push(folder: Path) -> tuple[Path, bool]:
    """Return the dataset folder to push: `folder` itself, or what its `.pt` files convert to.

    A folder of `.pt` files is imported into `FOLDER-dataset` beside it, which is kept, so that an
    interrupted push goes on with the same files. It is made anew when a file has come, gone or
    changed (its size or its time) since.

    Returns:
        The dataset folder, and whether it is made from `.pt` files.

    Raises:
        ActivationsError: its `.pt` files cannot be imported, or change meanwhile, or what lies at
            `FOLDER-dataset` is not a conversion of them.
    """
    if (folder / MANIFEST_FILE).is_file() or not is_pt_folder(folder):
        return folder, False
    folder = folder.absolute()
    converted = folder.with_name(f"{folder.name}-dataset")
    note = folder.with_name(f".{converted.name}.source.json")
    sweep(note.parent, note.name)
    known = _read_note(note)
    now = _stamps(folder)
    if not is_empty_or_missing(converted):
        _check_made_here(folder, converted, known)
        if known is not None and known.pt_files == now and (converted / MANIFEST_FILE).is_file():
            if known.manifest_sha256 is None:
                # A kill came between the conversion's last deed and the note's.
                _write_note(note, Conversion(now, sha256_of(converted / MANIFEST_FILE)))
            # Before that, a kill may have left the conversion's lock.
            clear_leftovers(converted)
            return converted, True
        # It can be made again from the files, and is not yet what they are.
        shutil.rmtree(converted)
    _write_note(note, Conversion(now))
    import_pt(folder, converted)
    if _stamps(folder) != now:
        raise ActivationsError(
            f"files of {folder} changed while they were converted: run the same command again when "
            "nothing writes to it"
        )
    _write_note(note, Conversion(now, sha256_of(converted / MANIFEST_FILE)))
    return converted, True


def _stamps(folder: Path) -> dict[str, FileStamp]:
    files = [*folder.rglob("*.pt"), *folder.glob(EXPORT_FILE)]
    stats = {file.relative_to(folder).as_posix(): file.stat() for file in sorted(files)}
    return {path: FileStamp(stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def _check_made_here(folder: Path, converted: Path, known: Conversion | None) -> None:
    manifest = converted / MANIFEST_FILE
    if known is not None and (
        known.manifest_sha256 is None
        or not manifest.is_file()
        or sha256_of(manifest) == known.manifest_sha256
    ):
        return
    raise ActivationsError(
        f"{converted} is in the way: it is not known to be made from the .pt files of {folder}. "
        "Move it away and run the same command again, or push it itself"
    )


def _read_note(note: Path) -> Conversion | None:
    if not note.is_file():
        return None
    value = parse_json_object(note.read_bytes(), note)
    return read_object(Conversion, value, note, "a note on a conversion")


def _write_note(note: Path, conversion: Conversion) -> None:
    write_json(note, dataclasses.asdict(conversion))
