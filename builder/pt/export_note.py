"""`export.json`: what an export folder is an export of, and with which options.

It carries its own checksum (`sealed_json`), and the version of the format that has one: what an
import takes for the recipe of its data is what `export` wrote. Release 1.0 wrote neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.leftovers import is_empty_or_missing
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.formats.dataset_folder import (
    NORMS_FILE,
    SAMPLES,
    SAMPLES_SPLIT,
    Manifest,
)
from llava_amber_activations.formats.dtypes import DType, dataset_dtype
from llava_amber_activations.formats.recipe import Recipe
from llava_amber_activations.formats.version import FORMAT_VERSION, check_format_version, has_seals
from llava_amber_activations.parsing.checked_values import (
    INT64_MAX,
    check_choice,
    check_number,
    check_sha256,
)
from llava_amber_activations.parsing.sealed_json import check_seal, sealed
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportNote:
    """The text of `export.json`.

    Attributes:
        format: `layers` or `samples`.
        layers: that are exported.
        n_targets, first_target, batch_size, pad_targets: as `export` takes them.
        recipe: of the dataset, but `x_site`: where in a layer the files' `x` was read, or computed
            for.
        data_sha256: of the dataset's vectors, as `vectors_sha256` gives it; None in a folder of
            release 1.0.
        dtype: of the files' tensors; None in a folder of an earlier release: the dataset's own.
    """

    format: Literal["layers", "samples"]
    layers: tuple[int, ...]
    n_targets: int
    first_target: int
    batch_size: int
    pad_targets: bool
    recipe: Recipe
    data_sha256: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_number("n_targets", self.n_targets, 1, INT64_MAX)
        check_number("first_target", self.first_target, 0, 1)
        check_number("batch_size", self.batch_size, 1, INT64_MAX)
        check_sha256("data_sha256", self.data_sha256)
        check_choice("dtype", self.dtype, get_args(DType))

    @property
    def tensors_dtype(self) -> str:
        """Dtype of the files' tensors, also where an earlier release did not note it."""
        return self.dtype or dataset_dtype(self.recipe.store_dtype)

    def to_json(self) -> dict[str, Any]:
        """Return the note as a JSON object, its own checksum last."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        others = {"layers": list(self.layers), "recipe": self.recipe.to_json()}
        return sealed({"format_version": FORMAT_VERSION, **fields, **others})

    @classmethod
    def from_json(cls, value: dict[str, Any], where: object) -> ExportNote:
        """Read a note back.

        Raises:
            ActivationsError: it is not as it was written, or a key is missing or of another type;
                the message names `where`.
        """
        version = value.get("format_version", "1.0")
        check_format_version(version, where)
        advice = "export again into a new folder, or copy the folder again"
        check_seal(value, where, advice, required=has_seals(version))
        return read_object(cls, value, where, "a note of export")


def vectors_sha256(manifest: Manifest, *, with_norms: bool = False) -> str:
    """Return one checksum of a dataset's Parquet files that hold vectors, by their own.

    Args:
        with_norms: of its norms too, by which `x` is computed.
    """
    digest = hashlib.sha256()
    samples = manifest.shards(SAMPLES, SAMPLES_SPLIT)
    for path, entry in sorted(manifest.files.items()):
        has_vectors = entry.rows is not None and path not in samples
        if has_vectors or (with_norms and path == NORMS_FILE):
            digest.update(f"{path} {entry.sha256}\n".encode())
    return digest.hexdigest()


def read_note(folder: Path) -> ExportNote | None:
    """Return what `export` wrote down about a folder; None where it is another's.

    Raises:
        ActivationsError: the note cannot be read.
    """
    path = folder / EXPORT_FILE
    if not path.is_file():
        return None
    return ExportNote.from_json(parse_json_object(path.read_bytes(), path), path)


def check_free(out: Path) -> None:
    """Check that nothing is in the way of an export, new or gone on with.

    Raises:
        ActivationsError: the folder holds something else.
    """
    if not (out / EXPORT_FILE).is_file() and not is_empty_or_missing(out):
        raise ActivationsError(f"{out} already holds something: give a new or an empty folder")


def adopt(out: Path, note: ExportNote) -> None:
    """Begin an export folder, or check that it was begun with the same note.

    Raises:
        ActivationsError: it was begun with another.
    """
    begun = read_note(out)
    if begun is None:
        write_json(out / EXPORT_FILE, note.to_json())
        return
    begun = replace(begun, dtype=begun.tensors_dtype)
    fields = [field.name for field in dataclasses.fields(note)]
    different = [name for name in fields if getattr(begun, name) != getattr(note, name)]
    if begun.recipe.x_site != note.recipe.x_site:
        # Its files are others, whatever the rest of the recipe is.
        raise ActivationsError(
            f"{out} holds an export of x at {begun.recipe.x_site}, not {note.recipe.x_site}: give "
            "a new folder"
        )
    if different == ["data_sha256"]:
        raise ActivationsError(
            f"{out} holds an export of another state of this dataset, whose vectors have changed "
            "since, or which release 1.0 did not note: give a new folder"
        )
    if different:
        raise ActivationsError(
            f"{out} holds an export with another {', '.join(different)}: give a new folder"
        )
