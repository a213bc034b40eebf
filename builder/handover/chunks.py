"""The chunks of a hand-over: how many rows each has, and what is known of those that are whole.

Beside the chunks, `rows/rows-00000.safetensors` says of each of their rows which one it is: int32
`sample`, `position`, `token_id` and `kind` of [rows]; `tile`, and float32 `logprob`, where the
dataset has them; and what a layout adds. Its header has the checksums of the chunk's files, and it
is written when they are whole: a chunk without it is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from builder.handover.places import place_of
from llava_amber_activations.formats.columns import (
    EXTRA_ROW_TENSORS,
    FLOATS,
    KIND,
    POSITION,
    SAMPLE,
    TOKEN_ID,
)
from llava_amber_activations.formats.dataset_folder import FileEntry
from llava_amber_activations.store.tensor_file import TensorFile, write_tensors

_ROW_NUMBERS = (SAMPLE, POSITION, TOKEN_ID, KIND)
_KEY = "chunk"


def row_numbers(extra_columns: Container[str]) -> dict[str, torch.dtype]:
    """Return what is said of the rows of a dataset with some extra columns, and its dtypes."""
    extra = (name for name in EXTRA_ROW_TENSORS if name in extra_columns)
    return {
        name: torch.float32 if name in FLOATS else torch.int32 for name in (*_ROW_NUMBERS, *extra)
    }


@dataclass(frozen=True)
class ChunkPlan:
    """The rows of each chunk.

    Attributes:
        sizes: of each, in order.
        left_out: rows that no chunk has.
    """

    sizes: tuple[int, ...]
    left_out: int

    def first_row(self, chunk: int) -> int:
        """Return the number of a chunk's first row."""
        return sum(self.sizes[:chunk])


def plan_chunks(n_rows: int, chunk_rows: int, *, equal: bool) -> ChunkPlan:
    """Cut rows into as many chunks as have `chunk_rows` rows each at least.

    Args:
        equal: leave out the remainder, fewer rows than there are chunks, so that all are of one
            size. Otherwise the last chunk has it.
    """
    n_chunks = max(1, n_rows // chunk_rows)
    size, remainder = divmod(n_rows, n_chunks)
    if equal:
        return ChunkPlan((size,) * n_chunks, remainder)
    return ChunkPlan((*(size,) * (n_chunks - 1), size + remainder), 0)


@dataclass(frozen=True)
class _Header:
    """What a file of rows says of its chunk: each file, by its name in the export."""

    files: dict[str, FileEntry]


def rows_name(chunk: int) -> str:
    """Return the name of the file that says which rows a chunk has."""
    return f"rows/rows-{chunk:05d}.safetensors"


def write_record(
    out: Path, chunk: int, tensors: Mapping[str, torch.Tensor], files: Mapping[str, FileEntry]
) -> None:
    """Write what says that a chunk is whole."""
    header = {"files": {name: dataclasses.asdict(entry) for name, entry in files.items()}}
    write_tensors(place_of(out, rows_name(chunk)), tensors, _KEY, header)


def open_record(out: Path, chunk: int) -> TensorFile:
    """Open what says which rows a chunk has.

    Raises:
        FileNotFoundError: it is not there.
        ActivationsError: it is damaged.
    """
    path = place_of(out, rows_name(chunk))
    return TensorFile(path, _KEY, "delete it and run the same command again")


def files_of_record(record: TensorFile) -> dict[str, FileEntry]:
    """Return the files of a chunk, by their names in the export.

    Raises:
        ActivationsError: the record is damaged.
    """
    header: _Header = record.read_header(_Header)
    return header.files


def is_whole(out: Path, chunk: int, names: Sequence[str]) -> bool:
    """Whether a chunk's files are all there, each as large as it was written.

    Raises:
        ActivationsError: what says so is damaged.
    """
    try:
        files = files_of_record(open_record(out, chunk))
        sizes = {name: place_of(out, name).stat().st_size for name in names}
    except FileNotFoundError:
        return False
    return sizes == {name: entry.bytes for name, entry in files.items()}
