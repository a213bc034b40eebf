"""The capture store: its files, its tensors, and reading and writing one chunk.

    STORE/
      capture.json                        the recipe
      responses.json                      AMBER's evaluation form, where responses were generated
      samples.jsonl                       one line a sample; written when the last chunk is there
      features/features-00000.safetensors features_00 …: [samples, F]; sample: int32 [samples]
      chunks/chunk-00000.safetensors      x_00 …, mlp_out_00 …: [rows, H]
                                          sample, position, token_id, kind (its code),
                                          patch_row, patch_col: int32 [rows]

A chunk covers a fixed range of samples and appears whole or not at all. Its safetensors header
carries, under the one metadata key `chunk`, the records of its samples, the SHA-256 of its tensors
and the batch size that it was captured with. (One key, because the order in which several are
written is not defined, and equal chunks
must be equal files.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llava_amber_activations.checked_values import INT32_MAX, check_number, check_sha256
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import write_json, write_text, written_whole
from llava_amber_activations.layers import mlp_out_name, x_name
from llava_amber_activations.recipe import Recipe
from llava_amber_activations.typed_json import parse_json_object, read_object

RECIPE_FILE = "capture.json"
SAMPLES_FILE = "samples.jsonl"
RESPONSES_FILE = "responses.json"
CHUNKS_DIR = "chunks"
FEATURES_DIR = "features"
SAMPLE, POSITION, TOKEN_ID = "sample", "position", "token_id"
KIND, PATCH_ROW, PATCH_COL = "kind", "patch_row", "patch_col"
ROW_TENSORS = (SAMPLE, POSITION, TOKEN_ID)
# Stores that other programs write may lack these; -1 then stands for every row.
PLACE_TENSORS = (KIND, PATCH_ROW, PATCH_COL)
_METADATA_KEY = "chunk"
_FEATURES = "features_"


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
    return Recipe.from_json(parse_json_object(path.read_bytes(), path), path)


def write_recipe(store: Path, recipe: Recipe) -> None:
    """Write a store's recipe."""
    write_json(store / RECIPE_FILE, recipe.to_json())


def chunk_path(store: Path, chunk: int) -> Path:
    """Return the path of a chunk."""
    return store / CHUNKS_DIR / f"chunk-{chunk:05d}.safetensors"


def features_path(store: Path, chunk: int) -> Path:
    """Return the path of a chunk's transcoder features."""
    return store / FEATURES_DIR / f"features-{chunk:05d}.safetensors"


def features_name(layer: int) -> str:
    """Name of a layer's features in a features file: `features_05`."""
    return f"{_FEATURES}{layer:02d}"


def write_features(path: Path, features: Mapping[int, torch.Tensor], sample: torch.Tensor) -> None:
    """Write a chunk's features, whole or not at all.

    Args:
        features: of each layer, [samples, F].
        sample: int32 [samples], those of the chunk's samples that have rows.
    """
    tensors = {features_name(layer): tensor for layer, tensor in features.items()}
    _save(path, {**tensors, SAMPLE: sample})


class FeaturesFile:
    """A chunk's features, open for reading.

    Raises:
        ActivationsError: the file is missing, truncated or not a features file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
            self.sample: torch.Tensor = self._file.get_tensor(SAMPLE)
            names = set(self._file.keys()) - {SAMPLE}
            self.layers = sorted(int(name.removeprefix(_FEATURES)) for name in names)
        except (SafetensorError, OSError, ValueError) as error:
            raise ActivationsError(
                f"{path} is missing or damaged ({error}): delete it and the chunk of its number, "
                "and run the same capture command again to make them anew"
            ) from None

    def rows(self, layer: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read samples `start` … `stop` of a layer's features: [samples, F]."""
        stop = len(self.sample) if stop is None else stop
        rows: torch.Tensor = self._file.get_slice(features_name(layer))[start:stop]
        return rows


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
) -> None:
    """Write one chunk, whole or not at all; equal contents give equal bytes.

    Args:
        tensors: those of the module's docstring, contiguous, on the CPU.
        records: of the chunk's samples, in order.
        batch_size: most samples of a forward pass, where the chunk was captured.
    """
    metadata: dict[str, Any] = {
        "samples": [dataclasses.asdict(record) for record in records],
        "sha256": tensors_sha256(tensors),
    }
    if batch_size is not None:
        metadata["batch_size"] = batch_size
    _save(path, tensors, {_METADATA_KEY: json.dumps(metadata)})


def _save(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    with written_whole(path) as partial:
        try:
            save_file(dict(tensors), partial, metadata=metadata)
        except SafetensorError as error:
            raise ActivationsError(f"cannot write {path}: {error}") from None


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over the bytes of `tensors` in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _ChunkHeader:
    """What a chunk says of itself: its samples' records, and the checksum of its tensors."""

    samples: tuple[SampleRecord, ...]
    sha256: str
    batch_size: int | None = None


class Chunk:
    """One chunk, open for reading; nothing is read before it is asked for.

    Raises:
        ActivationsError: the file is missing, truncated or not a chunk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            metadata = (self._file.metadata() or {})[_METADATA_KEY]
        except FileNotFoundError:
            raise ActivationsError(
                f"{path} is missing: run the same capture command again to make it"
            ) from None
        except (SafetensorError, KeyError, OSError) as error:
            raise ActivationsError(
                f"{path} is damaged ({type(error).__name__}: {error}): delete it, "
                "and run the same capture command again to make it anew"
            ) from None
        try:
            value = parse_json_object(metadata, "its header")
            header = read_object(_ChunkHeader, value, "its header", "a chunk's")
        except ActivationsError as error:
            raise ActivationsError(
                f"{path} is damaged ({error}): delete it, and run the same capture command again "
                "to make it anew"
            ) from None
        self.sha256 = header.sha256
        self.records = list(header.samples)
        self.names = set(self._file.keys())

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
        if name not in self.names:
            raise ActivationsError(
                f"{self.path} has no tensor {name}: it is not a chunk of this store"
            )
        rows: torch.Tensor = self._file.get_slice(name)[start:stop]
        return rows


def read_samples(store: Path) -> list[SampleRecord]:
    """Read the records of a finished store.

    Raises:
        ActivationsError: the capture is not finished, or the file is damaged.
    """
    path = store / SAMPLES_FILE
    if not path.is_file():
        missing = missing_chunks(store, read_recipe(store))
        raise ActivationsError(
            f"the capture in {store} is not finished ({len(missing)} chunks are missing): "
            "run the same capture command again"
        )
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path} line {number}"
        value = parse_json_object(line, where)
        records.append(read_object(SampleRecord, value, where, "a sample"))
    return records


def write_samples(store: Path, recipe: Recipe) -> list[SampleRecord]:
    """Gather the samples' records from the chunks of a complete store into `samples.jsonl`."""
    chunks = range(len(recipe_chunks(recipe)))
    records = [record for chunk in chunks for record in Chunk(chunk_path(store, chunk)).records]
    write_text(store / SAMPLES_FILE, "".join(record.to_line() + "\n" for record in records))
    return records
