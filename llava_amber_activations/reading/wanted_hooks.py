"""Which vectors of which layers are wanted together, and what each is called in a batch.

The names are TransformerLens', as its trainers know them:

    blocks.{L}.hook_resid_pre, blocks.{L}.hook_resid_mid, blocks.{L}.mlp.hook_in    `x`
    blocks.{L}.hook_mlp_out                                                         `mlp_out`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.dataset_folder import ALL_LAYERS, ALL_LAYERS_SPLIT
from llava_amber_activations.formats.layers import mlp_out_name, x_name
from llava_amber_activations.reading.wanted_layer import check_types, not_held
from llava_amber_activations.sources.sites import MLP_INPUT, STREAM, site_norms
from llava_amber_activations.sources.source import Source

if TYPE_CHECKING:
    from llava_amber_activations.vectors.norms import Norm

X_HOOKS = {"resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "mlp_in": "mlp.hook_in"}
_MLP_OUT_HOOK = "hook_mlp_out"


@dataclass(frozen=True)
class HookVector:
    """One vector of a batch.

    Attributes:
        name: in the batch: a hook's.
        layer: whose it is.
        column: of the shards, that it is read from.
        norm: by which it is computed from the column; None where it is the column.
    """

    name: str
    layer: int
    column: str
    norm: Norm | None = None


@dataclass(frozen=True)
class WantedHooks:
    """The vectors that are read together, of all wanted layers.

    Attributes:
        x: of each layer, of each site that is wanted.
        mlp_out: of each layer; none where they are not wanted.
    """

    x: tuple[HookVector, ...]
    mlp_out: tuple[HookVector, ...]

    @property
    def vectors(self) -> tuple[HookVector, ...]:
        """All of them, in the order of a batch."""
        return (*self.x, *self.mlp_out)

    @property
    def columns(self) -> list[str]:
        """The columns that they are read from, each once."""
        return list(dict.fromkeys(vector.column for vector in self.vectors))

    @property
    def homes(self) -> dict[str, int]:
        """Which vector each column lies in before others are computed from it: itself, if it is."""
        order = sorted(range(len(self.vectors)), key=lambda n: self.vectors[n].norm is not None)
        return {self.vectors[n].column: n for n in reversed(order)}

    def about(self) -> dict[str, str]:
        """Say at which sites `x` is, where it is computed at one, as a saved state says it."""
        computed = {vector.norm is not None for vector in self.x}
        if True not in computed:
            return {}
        return {"x_site": f"{STREAM}, {MLP_INPUT}" if False in computed else MLP_INPUT}


def x_hook(layer: int, x_site: str) -> str:
    """Return TransformerLens' name of a layer's `x` at a site."""
    return f"blocks.{layer}.{X_HOOKS[x_site]}"


def mlp_out_hook(layer: int) -> str:
    """Return TransformerLens' name of a layer's MLP output."""
    return f"blocks.{layer}.{_MLP_OUT_HOOK}"


def wanted_hooks(
    source: Source,
    schema: pa.Schema,
    layers: Iterable[int] | None,
    x_sites: Sequence[str],
    *,
    mlp_out: bool,
) -> WantedHooks:
    """Return the vectors of some layers; where `layers` is None, of all that have them.

    Args:
        schema: of the source's shards.
        x_sites: the source's own, or such as can be computed of it; in an import that does not say
            its own, whatever it is to be called.

    Raises:
        ActivationsError: a layer is none of the model's, or the shards do not hold its vectors, or
            `x` cannot be had at a site.
    """
    n_layers, own_site = source.manifest.recipe.n_layers, source.manifest.recipe.x_site
    norms = {site: site_norms(source, site) if own_site else None for site in x_sites}
    if layers is None:
        # An import may lack the first MLP output, and the last x; a capture, whole layers.
        present = set(schema.names)
        needed = ([x_name] if x_sites else []) + ([mlp_out_name] if mlp_out else [])
        layers = [n for n in range(n_layers) if present.issuperset(name(n) for name in needed)]
    wanted = list(layers)
    check_wanted_layers(wanted, n_layers, source.name)
    found = WantedHooks(
        x=tuple(
            HookVector(
                x_hook(layer, site),
                layer,
                x_name(layer),
                norm=None if at_site is None else at_site.layer(layer),
            )
            for site, at_site in norms.items()
            for layer in wanted
        ),
        mlp_out=tuple(
            HookVector(mlp_out_hook(layer), layer, mlp_out_name(layer))
            for layer in wanted
            if mlp_out
        ),
    )
    check_hook_columns(schema, found, source.name)
    return found


def check_wanted_layers(layers: Sequence[int], n_layers: int, where: str) -> None:
    """Check which layers somebody wants together.

    Args:
        where: they are, as a message says it.

    Raises:
        ActivationsError: they are none, or none of the model's, or one is asked for twice.
    """
    if not layers:
        raise ActivationsError("no layer is asked for: layers is empty")
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise ActivationsError(
                f"{where} has no layer {layer}: its model's layers are 0 to {n_layers - 1}"
            )
    if len(set(layers)) < len(layers):
        raise ActivationsError(f"layers are asked for twice: {list(layers)}")


def hook_shards(source: Source) -> list[str]:
    """Return the shards that hold all layers side by side.

    Raises:
        ActivationsError: there are none.
    """
    shards = source.manifest.shards(ALL_LAYERS, ALL_LAYERS_SPLIT)
    if not shards:
        raise ActivationsError(
            f"{source.name} has no {ALL_LAYERS} config, which holds all layers of a row side by "
            "side: several layers at once cannot be had. Build it with --configs all_layers"
        )
    return shards


def check_hook_columns(schema: pa.Schema, wanted: WantedHooks, where: object) -> None:
    """Check that a shard of this schema holds what is wanted.

    Raises:
        ActivationsError: it does not.
    """
    present = set(schema.names)
    missing = [name for name in wanted.columns if name not in present]
    if missing:
        raise not_held(missing[0], schema, where)
    check_types(schema, wanted.columns, where)
