"""A dataset of activations as one object: its layers, statistics and samples, and batches of them.

    acts = Activations("KOKOSde/llava-amber-activations")
    for batch in acts.batches(layer=5, n_targets=4, batch_size=4096, shuffle=True):
        batch["x"], batch["targets"]                                 # [B, H], [B, 4, H]
    for batch in acts.hook_batches(layers=range(32), batch_size=4096):
        batch["blocks.5.hook_resid_mid"], batch["blocks.5.hook_mlp_out"]    # [B, H] each

Nothing but the manifest is read before it is asked for, and `datasets` is imported by `dataset`
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from llava_amber_activations.formats.dataset_folder import ALL_LAYERS, DEFAULT_CONFIG
from llava_amber_activations.formats.layers import LayerWindow, layers_text
from llava_amber_activations.formats.recipe import Recipe, XSite
from llava_amber_activations.sources.source import Source, open_source

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from llava_amber_activations.batches.activation_batches import ActivationBatches
    from llava_amber_activations.batches.hook_batches import HookNames
    from llava_amber_activations.batches.options import BatchOptions
    from llava_amber_activations.sources.statistics import Statistics


class Activations:
    """A dataset of activations, in a folder or on the Hub at one commit, opened once.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source is not a dataset of activations, or the Hub does not answer.
    """

    def __init__(self, source: str | Path, revision: str | None = None) -> None:
        self._source = open_source(source, revision)

    def __repr__(self) -> str:
        recipe = self.recipe
        return (
            f"Activations({self._source.name!r}: {recipe.model or 'an unknown model'}, "
            f"{_layers(recipe)} of width {recipe.hidden_size}, {self.n_rows} rows of "
            f"{recipe.n_samples} samples)"
        )

    @property
    def source(self) -> Source:
        """The folder or the repo, open."""
        return self._source

    @property
    def recipe(self) -> Recipe:
        """How the activations were made."""
        return self._source.manifest.recipe

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which `batches` gives `x` with at least one target, ascending."""
        manifest = self._source.manifest
        if manifest.splits(ALL_LAYERS):
            return LayerWindow(self.recipe.n_layers, 1).whole_sources(self.recipe.kept_layers)
        return manifest.layers(DEFAULT_CONFIG)

    @property
    def n_rows(self) -> int:
        """Rows of every layer."""
        return self._source.manifest.n_rows

    @cached_property
    def statistics(self) -> Statistics:
        """Moments of every layer's vectors, to normalise with.

        Raises:
            ActivationsError: as `load_statistics`.
        """
        from llava_amber_activations.sources.statistics import read_statistics

        return read_statistics(self._source)

    @cached_property
    def samples(self) -> pa.Table:
        """What is known of each sample: the dataset's config `samples`, but for its pictures.

        Of every sample of the query file, those that were skipped (`n_rows` 0, and why in `error`)
        too. A dataset that has no such config gives `sample`, `id`, `image` and `n_rows` of the
        samples that have rows.

        Raises:
            ActivationsError: a shard is missing or damaged.
        """
        from llava_amber_activations.reading.sample_table import read_samples_table

        return read_samples_table(self._source)

    def batches(
        self,
        layer: int,
        n_targets: int | None = None,
        *,
        first_target: int = 1,
        x_site: XSite | None = None,
        **options: Unpack[BatchOptions],
    ) -> ActivationBatches:
        """Return batches of one layer: `{'x': [B, H], 'targets': [B, n, H], 'sample': [B], …}`.

        Args:
            layer: L, 0-based.
            n_targets: how many of the MLP outputs after `x`; as many as the dataset was made with
                where it is None.
            first_target: 1 starts the targets at L+1 (this project's convention), 0 at L itself.
            x_site: where `x` is read: the data's own site where it is None. `mlp_in` is computed
                from `resid_mid` where the dataset holds the model's norms.
            **options: as `activation_batches` takes them.

        Raises:
            ActivationsError: as `open_layer` and `activation_batches`.
        """
        from llava_amber_activations.batches.activation_batches import activation_batches
        from llava_amber_activations.streams.layer_stream import layer_of_source

        stream = layer_of_source(self._source, layer, n_targets, first_target, x_site)
        return activation_batches(stream, **options)

    def hook_batches(
        self,
        layers: Iterable[int] | None = None,
        *,
        names: HookNames = "transformer_lens",
        x_site: str | Sequence[str] | None = None,
        mlp_out: bool = True,
        rows: bool = False,
        prepared: bool = False,
        cache_dir: str | Path | None = None,
        **options: Unpack[BatchOptions],
    ) -> ActivationBatches:
        """Return batches of several layers at once, the rows of a batch the same in all of them.

        A row group is read once, and of it each vector once.

        Args:
            layers: which; where it is None, all that have both vectors (a capture may have kept
                some layers only, and an import may lack the last layer's `x`, and the first one's
                MLP output).
            names: `transformer_lens` gives `{'blocks.5.hook_resid_mid': [B, H],
                'blocks.5.hook_mlp_out': [B, H], …}`; `layers` gives a pair of dictionaries,
                `({5: x}, {5: mlp_out})`, with fields `x` and `mlp_out`.
            x_site: where `x` is read: the data's own site where it is None; `mlp_in` is computed
                from `resid_mid` where the dataset holds the model's norms. Several give a hook for
                each; with none of them (an empty list) there are MLP outputs alone.
            mlp_out: whether MLP outputs are wanted.
            rows: whether a batch says which rows it holds: `sample`, `position`, `kind`, … as
                int32 [B], and `logprob`, where the rows have it, as float32.
            prepared: write the layers into the cache of `datasets` first, once, and read its mapped
                file: for many epochs. From the Hub that takes the shards whole.
            cache_dir: where; the cache of `datasets` where it is None.
            **options: as `activation_batches` takes them.

        Raises:
            ActivationsError: the dataset has no config `all_layers`, or not those layers or sites;
                and as `activation_batches`.
        """
        from llava_amber_activations.batches.hook_batches import HooksAsked, batches_of_hooks

        wanted = None if layers is None else tuple(layers)
        asked = HooksAsked(wanted, names, x_site, mlp_out, rows, prepared, cache_dir)
        return batches_of_hooks(self._source, asked, options)

    def dataset(
        self,
        layer: int,
        n_targets: int | None = None,
        *,
        first_target: int = 1,
        x_site: XSite | None = None,
        streaming: bool = False,
        cache_dir: str | Path | None = None,
    ) -> datasets.Dataset | datasets.IterableDataset:
        """Return one layer as a dataset of `datasets`, as `load_activations` does.

        Raises:
            ActivationsError: as `load_activations`.
        """
        from llava_amber_activations.loading import load_layer

        return load_layer(
            self._source,
            layer,
            n_targets,
            first_target=first_target,
            x_site=x_site,
            streaming=streaming,
            cache_dir=cache_dir,
        )


def _layers(recipe: Recipe) -> str:
    if recipe.layers is None:
        return f"{recipe.n_layers} layers"
    return f"layers {layers_text(recipe.layers)} of {recipe.n_layers}"
