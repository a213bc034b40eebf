"""The dataset builder class: per-layer splits out of shards that hold every vector once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import datasets
import pyarrow as pa
from datasets.builder import Key

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import FLOAT_NAMES
from llava_amber_activations.formats.columns import X
from llava_amber_activations.formats.layers import (
    DEFAULT_N_TARGETS,
    LayerWindow,
    mlp_out_name,
    split_name,
    x_name,
)
from llava_amber_activations.formats.schema import features_of, layers_of
from llava_amber_activations.reading.layer_rows import layer_schema, read_layer
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.reading.wanted_layer import WantedLayer
from llava_amber_activations.sources.footers import NOTHING_EXPECTED, Expected
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.vectors.norms import Norm


@dataclass
class LlavaAmberActivationsConfig(datasets.BuilderConfig):
    """BuilderConfig for LlavaAmberActivations.

    Args:
        n_targets: the most targets a layer has.
        first_target: distance from a layer to its first target: 1 (this project's convention) or
            0 (the circuit-tracing paper's, where a layer is its own first target).
        layers: which layers become splits; all that the shards hold with all of their targets
            where it is None.
    """

    n_targets: int = DEFAULT_N_TARGETS
    first_target: int = 1
    layers: list[int] | None = None


class LlavaAmberActivations(datasets.ArrowBasedBuilder):
    """Reads `all_layers` shards, here or on the Hub, as the splits of the default config.

    The default config's own Parquet files are what this class yields, written out. It reads them
    too, so that a dataset imported from a few layers can be read in the same way.

    Examples:
        Two layers with four targets each, prepared in the cache:

        >>> builder = LlavaAmberActivations(
        ...     dataset_name="amber", data_files="DATASET/all_layers/*.parquet",
        ...     n_targets=4, layers=[0, 5],
        ... )
        >>> builder.download_and_prepare()
        >>> builder.as_dataset(split="L5")

        Every layer, targets from the layer itself on, streamed from the Hub:

        >>> builder = LlavaAmberActivations(
        ...     dataset_name="amber", first_target=0,
        ...     data_files="hf://datasets/KOKOSde/llava-amber-activations/all_layers/*.parquet",
        ... )
        >>> builder.as_streaming_dataset(split="L31")
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = LlavaAmberActivationsConfig
    # Rows are up to 1 MiB: the default of 1000 would hold, and lay in one Arrow chunk, a gigabyte.
    DEFAULT_WRITER_BATCH_SIZE = 64

    # What a manifest says of the shards, their checksums by their addresses, and the norms of the
    # layers whose `x` is computed. No part of the configuration, which names the cache.
    expected: Expected = NOTHING_EXPECTED
    checksums: Mapping[str, str] = MappingProxyType({})
    norms: Mapping[int, Norm] = MappingProxyType({})

    def _info(self) -> datasets.DatasetInfo:
        # The width and the dtype stand in the shards: `_split_generators` fills the features in.
        return datasets.DatasetInfo(features=None)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if not self.config.data_files:
            raise ActivationsError("data_files is missing: give the shards of all_layers")
        config = self.config
        files = [file for split in config.data_files.values() for file in split]
        first = Shards(files, self.expected).footer(files[0])
        schema = first.schema.to_arrow_schema()
        window = LayerWindow(layers_of(schema, files[0]), config.n_targets, config.first_target)
        layers = _whole_layers(schema, window) if config.layers is None else config.layers
        n_columns = sum(1 + len(window.targets(layer)) for layer in layers)
        if n_columns > len(schema):
            # Layers share targets: the whole shards are fewer bytes than every layer's columns.
            files = dl_manager.download(files)
        if self.info.features is None:
            self.info.features = features_of(layer_schema(schema, files[0]))
        return [
            datasets.SplitGenerator(
                name=split_name(layer),
                gen_kwargs={
                    "files": files,
                    "row_groups_list": [None] * len(files),
                    "wanted": WantedLayer(
                        layer, config.n_targets, config.first_target, self.norms.get(layer)
                    ),
                },
            )
            for layer in layers
        ]

    def _shards(self, files: list[str]) -> Shards:
        """Open shards that must all be as the first one is, and as the manifest says."""
        x = self.info.features.arrow_schema.field(X).type
        dtype = FLOAT_NAMES[x.value_type]
        expected = dataclasses.replace(self.expected, width=x.list_size, dtype=dtype)
        return Shards(files, expected, checked=True)

    def _generate_shards(
        self, files: list[str], row_groups_list: list[Any], wanted: WantedLayer
    ) -> Iterator[str]:
        yield from files

    def _generate_more_gen_kwargs(
        self, files: list[str], row_groups_list: list[Any], wanted: WantedLayer
    ) -> Iterator[dict[str, Any]]:
        """Cut shards into row groups, for streams that are read by more workers than shards."""
        shards = self._shards(files)
        for file, row_groups in zip(files, row_groups_list, strict=True):
            groups = _all_groups(shards, file) if row_groups is None else row_groups
            yield {
                "files": [file] * len(groups),
                "row_groups_list": [(group,) for group in groups],
                "wanted": wanted,
            }

    def _generate_tables(
        self, files: list[str], row_groups_list: list[Any], wanted: WantedLayer
    ) -> Iterator[tuple[Key, pa.Table]]:
        shards = self._shards(files)
        schema = self.info.features.arrow_schema

        def groups() -> Iterator[RowGroup]:
            for path, numbers in zip(files, row_groups_list, strict=True):
                for number in _all_groups(shards, path) if numbers is None else numbers:
                    yield shards.row_group(path, number)

        def read(file: ShardFile, number: int) -> pa.Table:
            return read_layer(file, number, wanted).cast(schema)

        for count, table in enumerate(read_in_order(shards, groups(), read)):
            yield Key(0, count), table


def _whole_layers(schema: pa.Schema, window: LayerWindow) -> Sequence[int]:
    """Return the layers that shards of a schema hold with all of their targets."""
    present = set(schema.names)
    if X in present:  # a layer's own split
        return window.sources
    return [
        layer
        for layer in window.sources
        if present.issuperset([x_name(layer), *map(mlp_out_name, window.targets(layer))])
    ]


def _all_groups(shards: Shards, path: str) -> range:
    return range(len(shards.group_rows(path)))
