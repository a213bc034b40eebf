"""The shards of a dataset folder, planned from row counts: what each holds, and its schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from builder.contents.contents import VectorForm
from builder.shards.plan import plan_row_groups, plan_shards
from builder.shards.vector_moments import VectorMoments
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    CLT_FEATURES,
    DEFAULT_CONFIG,
    shard_path,
)
from llava_amber_activations.formats.layers import mlp_out_name, split_name, x_name
from llava_amber_activations.formats.schema import (
    all_layers_schema,
    clt_features_schema,
    default_schema,
    with_features,
)
from llava_amber_activations.store.features import features_name


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
        path: relative to the dataset folder; None where only the moments of `names` are wanted.
        config: `default`, `all_layers` or `clt_features`.
        layer: of the split; None in `all_layers`.
        names: vectors that it holds, in order: `x` and then the targets, those of all layers, or
            a layer's features.
        groups: rows of each row group.
        outliers_from: of each vector, the first class of sizes of its outliers, where the moments
            are taken once more.
    """

    path: str | None
    config: str
    layer: int | None
    names: tuple[str, ...]
    groups: tuple[range, ...]
    outliers_from: Mapping[str, int] = field(default_factory=dict)


def plan_layer(
    form: VectorForm,
    rows_of_samples: Sequence[int],
    layer: int,
    targets: Sequence[int],
    shard_bytes: int,
) -> list[ShardTask]:
    """Plan the shards of a layer's split in the default config."""
    names = (x_name(layer), *map(mlp_out_name, targets))
    return _plan(form, rows_of_samples, DEFAULT_CONFIG, layer, names, shard_bytes)


def plan_all_layers(
    form: VectorForm, rows_of_samples: Sequence[int], names: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """Plan the shards of `all_layers` with the vectors `names`."""
    return _plan(form, rows_of_samples, ALL_LAYERS, None, tuple(names), shard_bytes)


def plan_moments(
    form: VectorForm, rows_of_samples: Sequence[int], names: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """Plan a pass over the vectors `names` that writes nothing, for a folder without all_layers."""
    tasks = plan_all_layers(form, rows_of_samples, names, shard_bytes)
    return [dataclasses.replace(task, path=None) for task in tasks]


def plan_outliers(
    tasks: Sequence[ShardTask], moments: Mapping[str, VectorMoments]
) -> list[ShardTask]:
    """Plan a pass over the vectors whose outliers were not all told apart; it writes nothing.

    By now it is known which are outliers, so that after it none are left.

    Args:
        tasks: that gave the moments.
        moments: of all rows, merged.
    """
    first = {
        name: each.outliers_from for name, each in moments.items() if not each.are_outliers_apart
    }
    if not first:
        return []
    return [
        dataclasses.replace(task, path=None, names=tuple(first), outliers_from=first)
        for task in tasks
        if task.layer is None
    ]


def plan_features(
    form: VectorForm, rows_of_samples: Sequence[int], layer: int, shard_bytes: int
) -> list[ShardTask]:
    """Plan the shards of a layer's split in `clt_features`."""
    names = (features_name(layer),)
    return _plan(form, rows_of_samples, CLT_FEATURES, layer, names, shard_bytes)


def _plan(
    form: VectorForm,
    rows_of_samples: Sequence[int],
    config: str,
    layer: int | None,
    names: tuple[str, ...],
    shard_bytes: int,
) -> list[ShardTask]:
    row_bytes = len(names) * form.width * np.dtype(form.dtype).itemsize
    groups = plan_row_groups(rows_of_samples, form.width, row_bytes)
    shards = plan_shards(groups, row_bytes, shard_bytes)
    split = ALL_LAYERS_SPLIT if layer is None else split_name(layer)
    return [
        ShardTask(
            shard_path(config, split, number, len(shards)), config, layer, names, tuple(of_shard)
        )
        for number, of_shard in enumerate(shards)
    ]


def schema_of(form: VectorForm, task: ShardTask) -> pa.Schema:
    """Return the schema of a shard, as `datasets` reads it."""
    shape = (form.width, form.dtype, form.n_layers)
    if task.config == ALL_LAYERS:
        return with_features(all_layers_schema(task.names, *shape, form.extra_columns))
    if task.config == CLT_FEATURES:
        return with_features(clt_features_schema(*shape))
    return with_features(default_schema(*shape, form.extra_columns))
