"""`export.json` of a hand-over: what is handed over, of which data, and with which options."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from builder.asked.handover_asked import HANDOVERS, Handover, HandoverAsked
from builder.pt.export_note import EXPORT_FILE, vectors_sha256
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.whole import write_json
from llava_amber_activations.formats.dtypes import DType
from llava_amber_activations.formats.layers import mlp_out_name, parse_layers, x_name
from llava_amber_activations.formats.recipe import Recipe, XSite
from llava_amber_activations.formats.version import FORMAT_VERSION, check_format_version
from llava_amber_activations.parsing.checked_values import INT64_MAX, check_number, check_sha256
from llava_amber_activations.parsing.sealed_json import check_seal, sealed
from llava_amber_activations.parsing.typed_json import parse_json_object, read_object
from llava_amber_activations.reading.wanted_hooks import hook_shards, mlp_out_hook, x_hook
from llava_amber_activations.sources.sites import is_computed
from llava_amber_activations.sources.source import Source

# Rows of a chunk. Llamascopium reads a chunk of every hook at once; a batch of crosslayer-coding,
# 4096 rows unless it is told otherwise, comes from one chunk.
DEFAULT_CHUNK_ROWS = {"llamascopium": 4096, "saelens": 16384, "crosslayer-coding": 16384}
_DTYPES = {"llamascopium": get_args(DType)}
_DTYPES_OF_OTHERS = ("float16", "float32")


@dataclass(frozen=True)
class HandoverNote:
    """The text of `export.json`.

    Attributes:
        format: whose layout.
        layers: that are exported, ascending.
        x_site, dtype, seed, chunk_rows, skip_first: as `HandoverAsked`, decided.
        recipe: of the dataset.
        data_sha256: of the dataset's vectors, as `vectors_sha256` gives it, and of its norms where
            `x` is computed by them.
    """

    format: Handover
    layers: tuple[int, ...]
    x_site: XSite
    dtype: DType
    seed: int
    chunk_rows: int
    skip_first: bool
    recipe: Recipe
    data_sha256: str

    def __post_init__(self) -> None:
        check_number("seed", self.seed, 0, INT64_MAX)
        check_number("chunk_rows", self.chunk_rows, 1, INT64_MAX)
        check_sha256("data_sha256", self.data_sha256)

    @property
    def x_hooks(self) -> list[str]:
        """TransformerLens' name of each layer's `x`."""
        return [x_hook(layer, self.x_site) for layer in self.layers]

    @property
    def mlp_out_hooks(self) -> list[str]:
        """TransformerLens' name of each layer's MLP output."""
        return [mlp_out_hook(layer) for layer in self.layers]

    @property
    def hooks(self) -> list[str]:
        """All of both."""
        return [*self.x_hooks, *self.mlp_out_hooks]

    def to_json(self) -> dict[str, Any]:
        """Return the note as a JSON object, its own checksum last."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        others = {"layers": list(self.layers), "recipe": self.recipe.to_json()}
        return sealed({"format_version": FORMAT_VERSION, **fields, **others})

    @classmethod
    def from_json(cls, value: dict[str, Any], where: object) -> HandoverNote:
        """Read a note back.

        Raises:
            ActivationsError: it is not as it was written, or a key is missing or of another type;
                the message names `where`.
        """
        check_format_version(value.get("format_version"), where)
        check_seal(value, where, "export again into a new folder", required=True)
        return read_object(cls, value, where, "a note of export")


def note_of(source: Source, asked: HandoverAsked) -> HandoverNote:
    """Decide what is handed over of a source.

    Raises:
        ActivationsError: the source does not hold what is asked for, or the layout cannot.
    """
    manifest = source.manifest
    available = _layers_with_pairs(source)
    dtype: Any = manifest.dtype if asked.dtype is None else asked.dtype
    allowed = _DTYPES.get(asked.format, _DTYPES_OF_OTHERS)
    if dtype not in allowed:
        raise ActivationsError(
            f"--format {asked.format} holds {' or '.join(allowed)}, and no {dtype}: its files have "
            "no such type"
        )
    x_site: Any = manifest.recipe.x_site if asked.x_site is None else asked.x_site
    if x_site is None:
        raise ActivationsError(
            f"{source.name} does not say where its x was read (it was imported): say it, with "
            "--x-site"
        )
    # Of an import that does not say its own site, this is only what it is to be called.
    has_norms = manifest.recipe.x_site is not None and is_computed(source, x_site)
    rows = DEFAULT_CHUNK_ROWS[asked.format] if asked.chunk_rows is None else asked.chunk_rows
    return HandoverNote(
        format=asked.format,
        layers=available if asked.layers is None else parse_layers(asked.layers, available),
        x_site=x_site,
        dtype=dtype,
        seed=asked.seed,
        chunk_rows=rows,
        skip_first=asked.skip_first,
        recipe=manifest.recipe,
        data_sha256=vectors_sha256(manifest, with_norms=has_norms),
    )


def _layers_with_pairs(source: Source) -> tuple[int, ...]:
    """Return the layers that both vectors are held of: an import may lack one at either end."""
    names = set(source.open_parquet(hook_shards(source)[0]).schema_arrow.names)
    layers = range(source.manifest.recipe.n_layers)
    return tuple(layer for layer in layers if {x_name(layer), mlp_out_name(layer)} <= names)


def adopt(out: Path, note: HandoverNote) -> None:
    """Begin an export folder, or check that it was begun with the same note.

    Raises:
        ActivationsError: it was begun with another.
    """
    path = out / EXPORT_FILE
    if not path.is_file():
        write_json(path, note.to_json())
        return
    value = parse_json_object(path.read_bytes(), path)
    if value.get("format") not in HANDOVERS:
        raise ActivationsError(f"{out} holds an export with another format: give a new folder")
    begun = HandoverNote.from_json(value, path)
    fields = [field.name for field in dataclasses.fields(note)]
    different = [name for name in fields if getattr(begun, name) != getattr(note, name)]
    if different == ["data_sha256"]:
        raise ActivationsError(
            f"{out} holds an export of another state of this dataset, whose vectors have changed "
            "since: give a new folder"
        )
    if different:
        raise ActivationsError(
            f"{out} holds an export with another {', '.join(different)}: give a new folder"
        )
