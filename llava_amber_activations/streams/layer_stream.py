"""A layer's rows as they come from its shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_amber_activations.formats.recipe import XSite
from llava_amber_activations.reading.layer_rows import read_layer_rows
from llava_amber_activations.reading.wanted_layer import WantedLayer, layer_shards, wanted_layer
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.sites import MLP_INPUT
from llava_amber_activations.sources.source import Source, expected_of, open_source
from llava_amber_activations.streams.shard_stream import ShardStream, digest_of
from llava_amber_activations.vectors.held_rows import HeldRows
from llava_amber_activations.vectors.recycled import RecycledMemory


@dataclass(frozen=True, kw_only=True)
class LayerStream(ShardStream):
    """Rows of shards, of which one layer is read. Can be sent to worker processes.

    Attributes:
        wanted: the layer and its targets.
    """

    wanted: WantedLayer

    def read(self, file: ShardFile, group: int, memory: RecycledMemory) -> HeldRows:
        """Read a row group's `x` and targets."""
        return read_layer_rows(file, group, self.wanted, memory)

    def about(self) -> dict[str, Any]:
        """Say which layer and targets these are."""
        about: dict[str, Any] = {
            "layer": self.wanted.layer,
            "n_targets": self.wanted.n_targets,
            "first_target": self.wanted.first_target,
        }
        if self.wanted.norm is not None:
            about["x_site"] = MLP_INPUT
        return about


def open_layer(
    source: str | Path,
    layer: int,
    n_targets: int | None = None,
    *,
    first_target: int = 1,
    x_site: XSite | None = None,
    revision: str | None = None,
) -> LayerStream:
    """Open one layer for `activation_batches`, whose first batch then comes at once.

    Nothing is prepared or cached, and `datasets` is not imported: rows are decoded from the
    shards as they are asked for, here or from the Hub.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        layer: L, 0-based.
        n_targets: how many of the MLP outputs after `x`; as many as the dataset was made with
            where it is None.
        first_target: 1 starts the targets at L+1 (this project's convention), 0 at L itself.
        x_site: where `x` is read, as the dataset was captured where it is None. `mlp_in` is
            computed from `resid_mid` where the dataset holds the model's norms.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source is not a dataset of activations, or does not hold the layer or
            as many targets, or `x` cannot be had at `x_site`.
    """
    return layer_of_source(open_source(source, revision), layer, n_targets, first_target, x_site)


def layer_of_source(
    opened: Source,
    layer: int,
    n_targets: int | None,
    first_target: int,
    x_site: XSite | None = None,
) -> LayerStream:
    """Open one layer of a source that is open, as `open_layer` does."""
    wanted = wanted_layer(opened, layer, n_targets, first_target, x_site)
    paths = layer_shards(opened, wanted)
    return LayerStream(
        urls=tuple(opened.url(path) for path in paths),
        wanted=wanted,
        expected=expected_of(opened, paths),
        digest=digest_of([opened.manifest.files[path].sha256 for path in paths]),
    )
