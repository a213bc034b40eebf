"""One chunk of a capture store, read and written.

A chunk covers a fixed range of samples and appears whole or not at all. Its safetensors header
carries, under the metadata key `chunk`, the records of its samples, the batch size that it was
captured with, the checksum of its features, whether the norms gave the MLPs what they received
(`norms_file`), and what `tensor_file` says: the SHA-256 of each tensor, and one over all of this.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import (
    EXTRA_ROW_TENSORS,
    FLOATS,
    KIND,
    KINDS,
    LOGPROB,
    OPTIONAL_ROW_TENSORS,
    ROW_TENSORS,
    SAMPLE,
    SOURCE,
)
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.parsing.checked_values import INT32_MAX, check_number, check_sha256
from llava_amber_activations.store.layout import vector_names
from llava_amber_activations.store.samples import SampleRecord
from llava_amber_activations.store.tensor_file import Look, TensorFile, write_tensors
from llava_amber_activations.store.tensor_writing import BlockCheck

_METADATA_KEY = "chunk"
_REMEDY = "delete it, and run the same capture command again to make it anew"


def write_chunk(
    path: Path,
    tensors: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
    records: Sequence[SampleRecord],
    batch_size: int | None = None,
    features_sha256: str | None = None,
    norms_agree: bool | None = None,
    check: BlockCheck | None = None,
) -> None:
    """Write one chunk, whole or not at all; equal contents give equal bytes.

    Args:
        tensors: those of the module's docstring, contiguous, on the CPU; each one tensor, or its
            rows in several, which are not copied.
        records: of the chunk's samples, in order.
        batch_size: most samples of a forward pass, where the chunk was captured.
        features_sha256: what `write_features` returned, where the chunk has features.
        norms_agree: whether what the norms gave was what the MLPs received, where it was looked at.
        check: looks at all rows on their way.
    """
    header: dict[str, Any] = {"samples": [record.to_json() for record in records]}
    optional = {
        "batch_size": batch_size,
        "features_sha256": features_sha256,
        "norms_agree": norms_agree,
    }
    header |= {name: value for name, value in optional.items() if value is not None}
    write_tensors(path, tensors, _METADATA_KEY, header, check)


@dataclass(frozen=True)
class _ChunkHeader:
    """What a chunk says of itself beside the checksums of its tensors."""

    samples: tuple[SampleRecord, ...]
    batch_size: int | None = None
    features_sha256: str | None = None
    norms_agree: bool | None = None

    def __post_init__(self) -> None:
        check_number("batch_size", self.batch_size, 1, INT32_MAX)
        check_sha256("features_sha256", self.features_sha256)


class Chunk:
    """One chunk, open for reading; nothing is read before it is asked for.

    Attributes:
        names: of its tensors.
        records: of its samples, in order.
        features_sha256: of the file of its features; None where it has none, and in format 1.0.
        norms_agree: whether what the norms gave was what the MLPs received, in rows of its first
            pass; None where that was not looked at.
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
        self.norms_agree = header.norms_agree
        self.names = self._file.names
        self.is_sealed = self._file.is_sealed
        self.identity = self._file.identity

    @property
    def n_rows(self) -> int:
        """Rows of the chunk."""
        return sum(record.n_rows for record in self.records)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Read rows `start` … `stop` of a tensor: [rows, H] of the store's dtype, or int32 [rows].

        Of the tensors that are optional, those that the chunk does not have are -1. `logprob` is
        float32.

        Raises:
            ActivationsError: the chunk has no such tensor.
        """
        stop = self.n_rows if stop is None else stop
        if name not in self.names and name in OPTIONAL_ROW_TENSORS:
            return torch.full((stop - start,), -1, dtype=torch.int32)
        return self._file.rows(name, start, stop)

    def check_tensor(self, name: str, look: Look | None = None) -> None:
        """Check a tensor's bytes, all of them; in format 1.0 those of the whole chunk.

        Args:
            look: is shown each piece on the way, as by `TensorFile.check_tensor`.

        Raises:
            ActivationsError: they are not as they were written.
        """
        if name in self.names or name not in OPTIONAL_ROW_TENSORS:
            self._file.check_tensor(name, look)

    def check_rows(self, recipe: Recipe) -> None:
        """Check the dtype and the shape of every tensor, and whose rows the chunk holds.

        Raises:
            ActivationsError: they are not those of the recipe and of the chunk's own records.
        """
        n_rows = self.n_rows
        for name in vector_names(recipe.kept_layers):
            self._file.check_form(name, recipe.store_dtype, n_rows, recipe.hidden_size)
        optional = [name for name in OPTIONAL_ROW_TENSORS if name in self.names]
        extra = [name for name in EXTRA_ROW_TENSORS if name in recipe.extra_columns]
        for name in (*ROW_TENSORS, *optional, *extra):
            self._file.check_form(name, "float32" if name in FLOATS else "int32", n_rows)
        expected = [record.sample for record in self.records for _ in range(record.n_rows)]
        if self.rows(SAMPLE).tolist() != expected:
            raise self._file.damaged("it has rows of other samples than its header says")
        kinds = self.rows(KIND)
        if n_rows and not -1 <= int(kinds.min()) <= int(kinds.max()) < len(KINDS):
            raise self._file.damaged("it has rows of an unknown kind")
        if LOGPROB in extra and bool((self.rows(LOGPROB) > 0).any()):
            raise self._file.damaged("it has a probability above 1")
        if SOURCE in recipe.extra_columns:
            self._check_sources({source.name for source in recipe.sources or ()})

    def _check_sources(self, names: Container[str]) -> None:
        for record in self.records:
            if record.source not in names:
                raise self._file.damaged(
                    f"sample {record.sample} is of source {record.source!r}, and the recipe names "
                    "no such source"
                )
