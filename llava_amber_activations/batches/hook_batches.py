"""Batches of several layers at once, under the names that trainers know them by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

import torch

from llava_amber_activations.batches.activation_batches import (
    ActivationBatches,
    activation_batches,
    dtype_of,
)
from llava_amber_activations.batches.options import BatchOptions
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.reading.wanted_hooks import WantedHooks
from llava_amber_activations.sources.source import Source, open_source
from llava_amber_activations.streams.hook_stream import hooks_of_source
from llava_amber_activations.vectors.batch import Batch, one_batch_at_a_time
from llava_amber_activations.vectors.norms import apply_norm

HookNames = Literal["transformer_lens", "layers"]


class LayerPairs(NamedTuple):
    """Same-layer pairs of a batch.

    Attributes:
        x: of each layer, [B, H].
        mlp_out: of each layer, [B, H].
    """

    x: dict[int, torch.Tensor]
    mlp_out: dict[int, torch.Tensor]


one_batch_at_a_time(LayerPairs)


@dataclass(frozen=True)
class HooksAsked:
    """What is asked for of several layers, as `Activations.hook_batches` says it."""

    layers: tuple[int, ...] | None = None
    names: HookNames = "transformer_lens"
    x_site: str | Sequence[str] | None = None
    mlp_out: bool = True
    rows: bool = False
    prepared: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if self.names not in ("transformer_lens", "layers"):
            raise ActivationsError(
                f"names must be 'transformer_lens' or 'layers', got {self.names!r}"
            )
        if self.names == "layers" and self.rows:
            raise ActivationsError(
                "rows=True goes with names='transformer_lens': a pair says of no row which it is"
            )
        if self.cache_dir is not None and not self.prepared:
            raise ActivationsError("cache_dir is for prepared=True: nothing else is kept")


def hook_batches(
    source: str | Path,
    layers: Iterable[int] | None = None,
    *,
    names: HookNames = "transformer_lens",
    x_site: str | Sequence[str] | None = None,
    mlp_out: bool = True,
    rows: bool = False,
    prepared: bool = False,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    **options: Unpack[BatchOptions],
) -> ActivationBatches:
    """Return batches of several layers at once: `Activations(source, revision).hook_batches(…)`.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        layers: as `Activations.hook_batches` takes them; and so the following.
        names: how a batch names its vectors.
        x_site: where `x` is read.
        mlp_out: whether MLP outputs are wanted.
        rows: whether a batch says which rows it holds.
        prepared: write the layers into the cache of `datasets` first.
        cache_dir: where.
        revision: branch, tag or commit on the Hub.
        **options: as `activation_batches` takes them.

    Raises:
        ActivationsError: as `Activations` and its `hook_batches`.
    """
    wanted = None if layers is None else tuple(layers)
    asked = HooksAsked(wanted, names, x_site, mlp_out, rows, prepared, cache_dir)
    return batches_of_hooks(open_source(source, revision), asked, options)


def batches_of_hooks(source: Source, asked: HooksAsked, options: BatchOptions) -> ActivationBatches:
    """Return batches of several layers of a source that is open."""
    stream = hooks_of_source(
        source, asked.layers, asked.x_site, mlp_out=asked.mlp_out, leading=asked.rows
    )
    wanted = stream.wanted
    if asked.names == "layers" and len(wanted.x) > len({vector.layer for vector in wanted.x}):
        raise ActivationsError("names='layers' gives one x a layer: ask for one x_site")
    batches = (
        _prepared_batches(source, wanted, asked, options)
        if asked.prepared
        else activation_batches(stream, **options)
    )
    return batches.given_as(AsPairs(wanted)) if asked.names == "layers" else batches


def _prepared_batches(
    source: Source, wanted: WantedHooks, asked: HooksAsked, options: BatchOptions
) -> ActivationBatches:
    from llava_amber_activations.prepared import load_all_layers

    dataset = load_all_layers(source, wanted.columns, asked.cache_dir)
    dtype = None
    if wanted.about():
        # What is computed is computed of the rows as they are kept.
        dtype = dtype_of(options.get("dtype"))
        options = {**options, "dtype": None}
    named = _Named(wanted, asked.rows, dtype)
    return activation_batches(dataset, **options).made_by(named, wanted.about())


@dataclass(frozen=True)
class AsPairs:
    """Makes pairs of a batch's dictionary."""

    wanted: WantedHooks

    def __call__(self, batch: Batch) -> LayerPairs:
        x, mlp_out = (
            {vector.layer: batch[vector.name] for vector in vectors}
            for vectors in (self.wanted.x, self.wanted.mlp_out)
        )
        return LayerPairs(x, mlp_out)


@dataclass(frozen=True)
class _Named:
    """Makes hooks of the columns of a prepared dataset.

    Attributes:
        dtype: of the vectors, where they are not of it yet.
    """

    wanted: WantedHooks
    leading: bool
    dtype: torch.dtype | None

    def __call__(self, batch: Batch) -> Batch:
        columns = set(self.wanted.columns)
        rows = {name: batch[name] for name in batch if self.leading and name not in columns}
        hooks = {vector.name: batch[vector.column] for vector in self.wanted.vectors}
        homes = self.wanted.homes
        for number, vector in enumerate(self.wanted.vectors):
            if vector.norm is not None:
                x = batch[vector.column]
                out = x if homes[vector.column] == number else None
                hooks[vector.name] = apply_norm(x, vector.norm, out=out, in_parallel=True)
        if self.dtype is not None:
            hooks = {name: vectors.to(self.dtype) for name, vectors in hooks.items()}
        return Batch({**rows, **hooks})
