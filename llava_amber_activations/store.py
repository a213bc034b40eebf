"""The capture store: its files, its tensors, and reading and writing one chunk.

    STORE/
      capture.json                        the recipe
      chunks/chunk-00000.safetensors      x_00 …, mlp_out_00 …: [rows, H]
                                          sample, position, token_id, kind (its code),
                                          patch_row, patch_col: int32 [rows]
      features/features-00000.safetensors of a chunk, where there are transcoders (`features_file`)
      samples.jsonl                       one line a sample; written when the last chunk is there
      responses.json                      AMBER's evaluation form, where responses were generated
      SHA256SUMS                          of the three files above that are JSON; written last

A chunk covers a fixed range of samples and appears whole or not at all. Its safetensors header
carries, under the metadata key `chunk`, the records of its samples, the batch size that it was
captured with, the checksum of its features, and what `tensor_file` says: the SHA-256 of each
tensor, and one over all of this. A store without SHA256SUMS is unfinished, unless it is of format
1.0, which had none.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_amber_activations.checked_values import INT32_MAX, check_number, check_sha256
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import write_json, write_text
from llava_amber_activations.kinds import KINDS
from llava_amber_activations.layers import mlp_out_name, x_name
from llava_amber_activations.read_errors import read_errors
from llava_amber_activations.recipe import Recipe, minor_version
from llava_amber_activations.sealed_json import FIRST_SEALED_MINOR
from llava_amber_activations.store_sums import (
    RECIPE_FILE,
    RESPONSES_FILE,
    SAMPLES_FILE,
    SUMS_FILE,
    check_sums,
    write_sums,
)
from llava_amber_activations.tensor_file import TensorFile, write_tensors
from llava_amber_activations.typed_json import parse_json_object, read_object

CHUNKS_DIR = "chunks"
SAMPLE, POSITION, TOKEN_ID = "sample", "position", "token_id"
KIND, PATCH_ROW, PATCH_COL = "kind", "patch_row", "patch_col"
ROW_TENSORS = (SAMPLE, POSITION, TOKEN_ID)
# Stores that other programs write may lack these; -1 then stands for every row.
PLACE_TENSORS = (KIND, PATCH_ROW, PATCH_COL)
_METADATA_KEY = "chunk"
_REMEDY = "delete it, and run the same capture command again to make it anew"


@dataclass(frozen=True)
class SampleRecord:
    """One line of `samples.jsonl`.

    Attributes:
        sample: index in the query file, from 0.
        id, image, query: as the query file has them.
        image_sha256: of the picture file's bytes.
        n_rows: how many rows of the store are this sample's; 0 where it was skipped.
        error: why it was skipped, or None.
        response: what the model answered, where it was asked to.
    """

    sample: int
    id: int
    image: str
    query: str
    image_sha256: str | None
    n_rows: int
    error: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        check_number("sample", self.sample, 0, INT32_MAX)
        check_number("id", self.id, -INT32_MAX - 1, INT32_MAX)
        check_number("n_rows", self.n_rows, 0, INT32_MAX)
        check_sha256("image_sha256", self.image_sha256)

    def to_line(self) -> str:
        """Return the record as one JSON line, without `error` or `response` where there is none."""
        fields = dataclasses.asdict(self)
        for name in ("error", "response"):
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields, ensure_ascii=False)


def is_store(path: Path) -> bool:
    """Whether `path` is a capture store, finished or not."""
    return (path / RECIPE_FILE).is_file()


def read_recipe(store: Path) -> Recipe:
    """Read a store's recipe.

    Raises:
        ActivationsError: there is none, or it is damaged or too new.
    """
    path = store / RECIPE_FILE
    if not path.is_file():
        raise ActivationsError(f"{store} is not a capture store: it has no {RECIPE_FILE}")
    with read_errors(path):
        text = path.read_bytes()
    return Recipe.from_json(parse_json_object(text, path), path)


def write_recipe(store: Path, recipe: Recipe) -> None:
    """Write a store's recipe."""
    write_json(store / RECIPE_FILE, recipe.to_json())


def chunk_path(store: Path, chunk: int) -> Path:
    """Return the path of a chunk."""
    return store / CHUNKS_DIR / f"chunk-{chunk:05d}.safetensors"


def chunk_ranges(n_samples: int, chunk_samples: int) -> list[range]:
    """Return the samples of every chunk: fixed ranges, whatever the number of processes."""
    starts = range(0, n_samples, chunk_samples)
    return [range(start, min(start + chunk_samples, n_samples)) for start in starts]


def recipe_chunks(recipe: Recipe) -> list[range]:
    """Return the samples of every chunk of a captured store."""
    return chunk_ranges(recipe.n_samples, recipe.chunk_samples or max(1, recipe.n_samples))


def missing_chunks(store: Path, recipe: Recipe) -> list[int]:
    """Return the numbers of the chunks that are not there yet."""
    chunks = range(len(recipe_chunks(recipe)))
    return [chunk for chunk in chunks if not chunk_path(store, chunk).exists()]


def vector_names(n_layers: int) -> list[str]:
    """Return the names of a chunk's vectors: every `x_LL`, then every `mlp_out_LL`."""
    layers = range(n_layers)
    return [*map(x_name, layers), *map(mlp_out_name, layers)]


def write_chunk(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    records: Sequence[SampleRecord],
    batch_size: int | None = None,
    features_sha256: str | None = None,
) -> None:
    """Write one chunk, whole or not at all; equal contents give equal bytes.

    Args:
        tensors: those of the module's docstring, contiguous, on the CPU.
        records: of the chunk's samples, in order.
        batch_size: most samples of a forward pass, where the chunk was captured.
        features_sha256: what `write_features` returned, where the chunk has features.
    """
    header: dict[str, Any] = {"samples": [dataclasses.asdict(record) for record in records]}
    for name, value in (("batch_size", batch_size), ("features_sha256", features_sha256)):
        if value is not None:
            header[name] = value
    write_tensors(path, tensors, _METADATA_KEY, header)


@dataclass(frozen=True)
class _ChunkHeader:
    """What a chunk says of itself beside the checksums of its tensors."""

    samples: tuple[SampleRecord, ...]
    batch_size: int | None = None
    features_sha256: str | None = None

    def __post_init__(self) -> None:
        check_number("batch_size", self.batch_size, 1, INT32_MAX)
        check_sha256("features_sha256", self.features_sha256)


class Chunk:
    """One chunk, open for reading; nothing is read before it is asked for.

    Attributes:
        names: of its tensors.
        records: of its samples, in order.
        features_sha256: of the file of its features; None where it has none, and in format 1.0.
        identity: one checksum of all that it holds.

    Raises:
        ActivationsError: the file is missing, truncated or not a chunk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = TensorFile(path, _METADATA_KEY, _REMEDY)
        except FileNotFoundError:
            raise ActivationsError(
                f"{path} is missing: run the same capture command again to make it"
            ) from None
        if not self._file.has_checksums:
            raise self._file.damaged("its header holds no checksums")
        header: _ChunkHeader = self._file.read_header(_ChunkHeader)
        self.records = list(header.samples)
        self.batch_size = header.batch_size
        self.features_sha256 = header.features_sha256
        self.names = self._file.names
        self.is_sealed = self._file.is_sealed
        self.identity = self._file.identity

    @property
    def n_rows(self) -> int:
        """Rows of the chunk."""
        return sum(record.n_rows for record in self.records)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows `start` … `stop` of a tensor: [rows, H] of the store's dtype, or int32 [rows].

        Of the place tensors, those that the chunk does not have are -1.

        Raises:
            ActivationsError: the chunk has no such tensor.
        """
        stop = self.n_rows if stop is None else stop
        if name not in self.names and name in PLACE_TENSORS:
            return torch.full((stop - start,), -1, dtype=torch.int32)
        return self._file.rows(name, start, stop)

    def check_tensor(self, name: str) -> None:
        """Check a tensor's bytes, all of them; in format 1.0 those of the whole chunk.

        Raises:
            ActivationsError: they are not as they were written.
        """
        if name in self.names or name not in PLACE_TENSORS:
            self._file.check_tensor(name)

    def check_rows(self, recipe: Recipe) -> None:
        """Check the dtype and the shape of every tensor, and whose rows the chunk holds.

        Raises:
            ActivationsError: they are not those of the recipe and of the chunk's own records.
        """
        n_rows = self.n_rows
        for name in vector_names(recipe.n_layers):
            self._file.check_form(name, recipe.store_dtype, n_rows, recipe.hidden_size)
        places = [name for name in PLACE_TENSORS if name in self.names]
        for name in (*ROW_TENSORS, *places):
            self._file.check_form(name, "int32", n_rows)
        expected = [record.sample for record in self.records for _ in range(record.n_rows)]
        if self.rows(SAMPLE).tolist() != expected:
            raise self._file.damaged("it has rows of other samples than its header says")
        kinds = self.rows(KIND)
        if n_rows and not -1 <= int(kinds.min()) <= int(kinds.max()) < len(KINDS):
            raise self._file.damaged("it has rows of an unknown kind")


def read_samples(store: Path) -> list[SampleRecord]:
    """Read the records of a finished store.

    Raises:
        ActivationsError: the capture is not finished, or one of the files that SHA256SUMS is of is
            damaged.
    """
    path = store / SAMPLES_FILE
    recipe = read_recipe(store)
    if not is_finished(store, recipe):
        missing = len(missing_chunks(store, recipe))
        raise ActivationsError(
            f"the capture in {store} is not finished ({missing} chunks are missing): run the same "
            "capture command again"
        )
    check_sums(store)
    with read_errors(path):
        lines = path.read_bytes().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        value = parse_json_object(line, where)
        records.append(read_object(SampleRecord, value, where, "a sample"))
    return records


def is_finished(store: Path, recipe: Recipe) -> bool:
    """Whether the last file of a store is there, which says that all are."""
    return (store / SAMPLES_FILE).is_file() and (
        (store / SUMS_FILE).is_file() or minor_version(recipe.format_version) < FIRST_SEALED_MINOR
    )


def finish_store(store: Path, recipe: Recipe) -> list[SampleRecord]:
    """Write what is gathered from the chunks of a complete store.

    The samples' records, the responses where there are any, in the form that AMBER's evaluation
    reads, and last the checksums of both and of the recipe.
    """
    chunks = range(len(recipe_chunks(recipe)))
    records = [record for chunk in chunks for record in Chunk(chunk_path(store, chunk)).records]
    write_text(store / SAMPLES_FILE, "".join(record.to_line() + "\n" for record in records))
    answered = [record for record in records if record.response is not None]
    if answered:
        write_json(
            store / RESPONSES_FILE,
            [{"id": record.id, "response": record.response} for record in answered],
        )
    write_sums(store)
    return records
