"""The dataset folder, which is the Hub repo: where its files lie, and its manifest.

DATASET/
  README.md                                dataset card
  data/L0-00000-of-00002.parquet …         config default (and L0, L1, …)
  all_layers/train-00000-of-00002.parquet  config all_layers, split train
  clt_features/L0-00000-of-00001.parquet   config clt_features
  samples/train-00000-of-00001.parquet     config samples, split train: a row a sample, no vectors
  statistics.safetensors                   moments of every layer's vectors
  norms.safetensors                        the norms before the MLPs, where `x` is `resid_mid`
  figures/rms.png, figures/energy.png …    what the card shows of them
  report.html                              a page to look at, where `push --report` made one
  manifest.json                            every file's sha256, bytes, rows and row groups; the
                                           recipe; its own checksum
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dtypes import DATASET_DTYPES
from llava_amber_activations.formats.layers import split_layer
from llava_amber_activations.formats.recipe import MOST_LAYERS, Recipe
from llava_amber_activations.formats.version import FORMAT_VERSION, check_format_version, has_seals
from llava_amber_activations.parsing.checked_values import (
    INT64_MAX,
    check_choice,
    check_number,
    check_relative_path,
    check_sha256,
)
from llava_amber_activations.parsing.sealed_json import check_seal, sealed
from llava_amber_activations.parsing.typed_json import read_object

CARD_FILE = "README.md"
MANIFEST_FILE = "manifest.json"
STATISTICS_FILE = "statistics.safetensors"
NORMS_FILE = "norms.safetensors"
REPORT_FILE = "report.html"
RMS_FIGURE = "figures/rms.png"
ENERGY_FIGURE = "figures/energy.png"
KINDS_FIGURE = "figures/kinds.png"
SINKS_FIGURE = "figures/sinks.png"
PATCHES_FIGURE = "figures/patches.png"
DEFAULT_CONFIG = "default"
ALL_LAYERS = "all_layers"
CLT_FEATURES = "clt_features"
ALL_LAYERS_SPLIT = "train"
SAMPLES = "samples"
SAMPLES_SPLIT = "train"

# In the order of the card.
CONFIG_DIRS = {
    SAMPLES: "samples",
    DEFAULT_CONFIG: "data",
    ALL_LAYERS: "all_layers",
    CLT_FEATURES: "clt_features",
}
_OF_ONE_SPLIT = (CONFIG_DIRS[SAMPLES], CONFIG_DIRS[ALL_LAYERS])

# What to do about a file of a dataset that is missing or damaged.
REMEDY = "build or download the dataset again"

_SHARD = re.compile(
    r"(?P<dir>\w+)/(?P<split>L(?P<layer>0|[1-9]\d{0,4})|train)"
    r"-(?P<shard>\d{5,})-of-(?P<n>\d{5,})\.parquet",
    re.ASCII,
)


@dataclass(frozen=True)
class FileEntry:
    """One file of the manifest.

    Attributes:
        sha256, bytes: its checksum and its size.
        rows: of a Parquet file; None of any other.
        row_groups: rows of each of its row groups; None where the manifest does not say, as in
            format 1.0.
    """

    sha256: str
    bytes: int
    rows: int | None = None
    row_groups: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_sha256("sha256", self.sha256)
        check_number("bytes", self.bytes, 0, INT64_MAX)
        check_number("rows", self.rows, 0, INT64_MAX)
        if self.row_groups is None:
            return
        for rows in (min(self.row_groups, default=0), max(self.row_groups, default=0)):
            check_number("row_groups", rows, 0, INT64_MAX)
        if sum(self.row_groups) != self.rows:
            raise ActivationsError(
                f"row_groups add up to {sum(self.row_groups)} rows, and rows is {self.rows}"
            )


@dataclass(frozen=True)
class BuiltFrom:
    """What a folder was built from, and how: the same again gives the same folder.

    Attributes:
        store_sha256: one checksum of all that the capture store holds.
        configs: that were asked for.
        max_shard_bytes: most bytes of a shard before compression.
        joined: SHA-256 of the files that were joined to the samples, by the option that named each.
        pictures: whether the pictures are in it; `picture_size` is the longest side of each, None
            where they are the files' own bytes.
    """

    store_sha256: str
    configs: tuple[str, ...]
    max_shard_bytes: int
    joined: dict[str, str] = dataclasses.field(default_factory=dict)
    pictures: bool = False
    picture_size: int | None = None

    def __post_init__(self) -> None:
        check_sha256("store_sha256", self.store_sha256)
        check_number("max_shard_bytes", self.max_shard_bytes, 1, INT64_MAX)
        check_number("picture_size", self.picture_size, 1, INT64_MAX)
        for name, sha256 in self.joined.items():
            check_sha256(name, sha256)


@dataclass(frozen=True)
class Manifest:
    """The text of `manifest.json`.

    Attributes:
        recipe: how the activations were made.
        dtype: float type of the vectors in the Parquet files.
        n_targets: how many targets the default config gives a layer.
        n_rows: rows of every split of vectors.
        files: by path relative to the folder.
        warnings: what `build` or `import` had to leave out, in sentences.
        built_from: the store and the options of `build`; None after an import, and in format 1.0.
    """

    recipe: Recipe
    dtype: str
    n_targets: int
    n_rows: int
    files: dict[str, FileEntry]
    warnings: tuple[str, ...] = ()
    built_from: BuiltFrom | None = None
    format_version: str = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_format_version(self.format_version, "the manifest")
        check_choice("dtype", self.dtype, DATASET_DTYPES)
        check_number("n_targets", self.n_targets, 1, MOST_LAYERS)
        check_number("n_rows", self.n_rows, 0, INT64_MAX)
        for path, entry in self.files.items():
            check_relative_path(path)
            self._check_shard(path, entry)

    def _check_shard(self, path: str, entry: FileEntry) -> None:
        """Check that a path in a config's folder names one of its shards, and its rows."""
        folder = path.partition("/")[0]
        if folder not in CONFIG_DIRS.values():
            return
        match = _SHARD.fullmatch(path)
        of_one_split = folder in _OF_ONE_SPLIT
        if match is None or (match["layer"] is None) != of_one_split:
            raise ActivationsError(f"{path!r} is in the folder of a config, and no shard of it")
        if not of_one_split and int(match["layer"]) >= self.recipe.n_layers:
            raise ActivationsError(
                f"{path!r} is of a layer that the model, of {self.recipe.n_layers}, does not have"
            )
        if entry.rows is None:
            raise ActivationsError(f"{path!r} has no number of rows")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object, its own checksum last."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        files = {path: dataclasses.asdict(self.files[path]) for path in sorted(self.files)}
        return sealed(
            {
                "format_version": fields.pop("format_version"),
                **fields,
                "warnings": list(self.warnings),
                "built_from": self.built_from and _object_of(self.built_from),
                "recipe": self.recipe.to_json(),
                "files": files,
            }
        )

    @classmethod
    def from_json(cls, value: dict[str, Any], where: object) -> Manifest:
        """Read a manifest back.

        Raises:
            ActivationsError: it is of a newer major format, it is not as it was written, keys are
                missing, or a value is not of its type or range.
        """
        version = value.get("format_version")
        check_format_version(version, where)
        required = has_seals(str(version))
        check_seal(value, where, REMEDY, required=required)
        return read_object(cls, value, where, "a manifest of this project")

    def shards(self, config: str, split: str) -> list[str]:
        """Return the paths of a split's shards, in order; none where the split is not there."""
        return self.splits(config).get(split, [])

    def splits(self, config: str) -> dict[str, list[str]]:
        """Return the splits of a config, in the order of their layers, with their shards."""
        splits: dict[str, list[str]] = {}
        for path in sorted(self.files):
            match = _SHARD.fullmatch(path)
            if match and match["dir"] == CONFIG_DIRS[config]:
                splits.setdefault(match["split"], []).append(path)
        return dict(sorted(splits.items(), key=lambda item: split_layer(item[0]) or 0))

    def layers(self, config: str) -> tuple[int, ...]:
        """Return the layers that have a split in a config, ascending."""
        layers = map(split_layer, self.splits(config))
        return tuple(layer for layer in layers if layer is not None)

    @property
    def configs(self) -> list[str]:
        """The configs of vectors that the folder holds."""
        return [config for config in self.all_configs if config != SAMPLES]

    @property
    def all_configs(self) -> list[str]:
        """The configs that the folder holds: `samples`, which has no vectors, and `configs`."""
        return [config for config in CONFIG_DIRS if self.splits(config)]

    def rows_of(self, paths: list[str]) -> int:
        """Return the rows of some shards together."""
        return sum(self.files[path].rows or 0 for path in paths)

    def bytes_of(self, paths: list[str]) -> int:
        """Return the bytes of some files together."""
        return sum(self.files[path].bytes for path in paths)


def _object_of(built_from: BuiltFrom) -> dict[str, Any]:
    return {**dataclasses.asdict(built_from), "configs": list(built_from.configs)}


def shard_path(config: str, split: str, shard: int, n_shards: int) -> str:
    """Return the path of a shard, relative to the dataset folder."""
    return f"{CONFIG_DIRS[config]}/{split}-{shard:05d}-of-{n_shards:05d}.parquet"
