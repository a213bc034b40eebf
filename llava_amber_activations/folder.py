"""The dataset folder, which is the Hub repo: where its files lie, and its manifest.

DATASET/
  README.md                                dataset card
  data/L0-00000-of-00002.parquet …         config default (and L0, L1, …)
  all_layers/train-00000-of-00002.parquet  config all_layers, split train
  clt_features/L0-00000-of-00001.parquet   config clt_features
  statistics.safetensors                   moments of every layer's vectors
  figures/rms.png, figures/energy.png      what the card shows of them
  manifest.json                            every file's sha256, bytes and rows; the recipe
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import known_fields
from llava_amber_activations.recipe import FORMAT_VERSION, Recipe, check_format_version

CARD_FILE = "README.md"
MANIFEST_FILE = "manifest.json"
STATISTICS_FILE = "statistics.safetensors"
RMS_FIGURE = "figures/rms.png"
ENERGY_FIGURE = "figures/energy.png"
DEFAULT_CONFIG = "default"
ALL_LAYERS = "all_layers"
CLT_FEATURES = "clt_features"
ALL_LAYERS_SPLIT = "train"

CONFIG_DIRS = {DEFAULT_CONFIG: "data", ALL_LAYERS: "all_layers", CLT_FEATURES: "clt_features"}

_SHARD = re.compile(r"(?P<dir>\w+)/(?P<split>\w+)-(?P<shard>\d{5})-of-(?P<n>\d{5})\.parquet")


@dataclass(frozen=True)
class FileEntry:
    """One file of the manifest: checksum, size in bytes and, for Parquet, rows."""

    sha256: str
    bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The text of `manifest.json`.

    Attributes:
        recipe: how the activations were made.
        dtype: float type of the vectors in the Parquet files.
        n_targets: how many targets the default config gives a layer.
        n_rows: rows of every split.
        files: by path relative to the folder.
        warnings: what `build` or `import` had to leave out, in sentences.
    """

    recipe: Recipe
    dtype: str
    n_targets: int
    n_rows: int
    files: dict[str, FileEntry]
    warnings: tuple[str, ...] = ()
    format_version: str = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object."""
        return {
            "format_version": self.format_version,
            "dtype": self.dtype,
            "n_targets": self.n_targets,
            "n_rows": self.n_rows,
            "warnings": list(self.warnings),
            "recipe": self.recipe.to_json(),
            "files": {path: dataclasses.asdict(self.files[path]) for path in sorted(self.files)},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], where: object) -> Manifest:
        """Read a manifest back.

        Raises:
            ActivationsError: it is of a newer major format, or keys are missing.
        """
        check_format_version(value.get("format_version"), where)
        try:
            return cls(
                recipe=Recipe.from_json(value["recipe"], where),
                dtype=value["dtype"],
                n_targets=value["n_targets"],
                n_rows=value["n_rows"],
                files={
                    path: FileEntry(**known_fields(FileEntry, entry))
                    for path, entry in value["files"].items()
                },
                warnings=tuple(value.get("warnings", ())),
                format_version=value["format_version"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ActivationsError(f"{where} is not a manifest of this project: {error}") from None

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
        return dict(sorted(splits.items(), key=lambda item: _layer_number(item[0])))

    @property
    def configs(self) -> list[str]:
        """The configs that the folder holds, of `default`, `all_layers` and `clt_features`."""
        return [config for config in CONFIG_DIRS if self.splits(config)]

    def rows_of(self, paths: list[str]) -> int:
        """Return the rows of some shards together."""
        return sum(self.files[path].rows or 0 for path in paths)

    def bytes_of(self, paths: list[str]) -> int:
        """Return the bytes of some files together."""
        return sum(self.files[path].bytes for path in paths)


def _layer_number(split: str) -> int:
    return int(split[1:]) if split[1:].isdecimal() else -1


def shard_path(config: str, split: str, shard: int, n_shards: int) -> str:
    """Return the path of a shard, relative to the dataset folder."""
    return f"{CONFIG_DIRS[config]}/{split}-{shard:05d}-of-{n_shards:05d}.parquet"
