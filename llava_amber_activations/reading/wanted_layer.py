"""Which layer and targets are wanted, and which shards and columns hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import LEADING, TARGETS, X
from llava_amber_activations.formats.dataset_folder import (
    ALL_LAYERS,
    ALL_LAYERS_SPLIT,
    DEFAULT_CONFIG,
)
from llava_amber_activations.formats.layers import (
    LayerWindow,
    layers_text,
    mlp_out_name,
    split_name,
    x_name,
)
from llava_amber_activations.formats.schema import layers_of
from llava_amber_activations.sources.sites import site_norm
from llava_amber_activations.sources.source import Source

if TYPE_CHECKING:
    from llava_amber_activations.vectors.norms import Norm


@dataclass(frozen=True)
class WantedLayer:
    """One layer with its targets, as a reader wants them.

    Attributes:
        layer: whose `x` is read.
        n_targets: the most targets wanted.
        first_target: distance from the layer to its first target, 0 or 1.
        norm: by which `x` is computed from the shards' as it is read; None where it is theirs.
    """

    layer: int
    n_targets: int
    first_target: int = 1
    norm: Norm | None = None

    def targets(self, n_layers: int) -> range:
        """Return the layers whose MLP outputs are wanted, of a model with `n_layers`."""
        return LayerWindow(n_layers, self.n_targets, self.first_target).targets(self.layer)


def wanted_layer(
    source: Source,
    layer: int,
    n_targets: int | None = None,
    first_target: int = 1,
    x_site: str | None = None,
) -> WantedLayer:
    """Return a layer with its targets, as many as the source was made with where it is None.

    Args:
        x_site: where `x` is read, as the source was captured where it is None.

    Raises:
        ActivationsError: the layer has no targets, or `x` cannot be had at `x_site`.
    """
    manifest = source.manifest
    most = manifest.n_targets if n_targets is None else n_targets
    WantedLayer(layer, most, first_target).targets(manifest.recipe.n_layers)
    return WantedLayer(layer, most, first_target, site_norm(source, layer, x_site))


def layer_shards(source: Source, wanted: WantedLayer) -> list[str]:
    """Return the shards to read a layer from: `all_layers` where it exists, else the layer's own.

    Raises:
        ActivationsError: neither is there, or the layer's own does not hold those targets.
    """
    manifest = source.manifest
    shards = manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if shards:
        return shards
    shards = manifest.shards(DEFAULT_CONFIG, split_name(wanted.layer))
    if not shards:
        have = ", ".join(manifest.splits(DEFAULT_CONFIG)) or "none"
        raise ActivationsError(
            f"{source.name} has no layer {wanted.layer}: the layers it has are {have}"
        )
    if wanted.first_target == 0:
        raise ActivationsError(
            f"{source.name} has no {ALL_LAYERS} config, and a layer's own split holds the targets "
            "from the next layer on: first_target=0 cannot be had"
        )
    if wanted.n_targets > manifest.n_targets:
        raise ActivationsError(
            f"{source.name} has no {ALL_LAYERS} config, and a layer's own split holds "
            f"{manifest.n_targets} targets: {wanted.n_targets} cannot be had"
        )
    return shards


def check_columns(schema: pa.Schema, wanted: WantedLayer, where: object) -> list[str]:
    """Return the names of a layer's `x` and targets in an all_layers shard of this schema.

    The names are none where the shard is of the layer's own split.

    Raises:
        ActivationsError: the shard does not hold the layer or one of its targets.
    """
    present = set(schema.names)
    if X in present:
        check_types(schema, [X, TARGETS], where)
        return []
    targets = wanted.targets(layers_of(schema, where))
    names = [x_name(wanted.layer), *map(mlp_out_name, targets)]
    missing = [name for name in names if name not in present]
    if missing:
        raise not_held(missing[0], schema, where)
    check_types(schema, names, where)
    return names


def not_held(name: str, schema: pa.Schema, where: object) -> ActivationsError:
    """Say that an all_layers shard of this schema lacks a vector, and which it has."""
    held = [_layers_of(column, schema) for column in ("x", "mlp_out")]
    said = [
        f"{column} of {layers_text(layers) or 'no layer'}"
        for column, layers in zip(("x", "mlp_out"), held, strict=True)
    ]
    return ActivationsError(
        f"this data does not hold {name}: it was captured or imported without it, and has "
        f"{' and '.join(said)} ({where})"
    )


def _layers_of(column: str, schema: pa.Schema) -> list[int]:
    numbers = (name.removeprefix(f"{column}_") for name in schema.names)
    return [int(number) for number in numbers if number.isdecimal()]


def check_types(schema: pa.Schema, names: Sequence[str], where: object) -> None:
    """Check that columns are vectors, targets lists of them, beside every column of a row."""
    present = set(schema.names)
    for name in names:
        type_ = schema.field(name).type if name in present else pa.null()
        if name == TARGETS and pa.types.is_list(type_):
            type_ = type_.value_type
        if not pa.types.is_fixed_size_list(type_):
            raise ActivationsError(
                f"{where} is damaged (no vectors in {name}): build or download the dataset again"
            )
    missing = [name for name in LEADING if name not in present]
    if missing:
        raise ActivationsError(
            f"{where} is damaged (no column {missing[0]}): build or download the dataset again"
        )
