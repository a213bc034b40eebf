"""Activations straight from a running model, batch after batch, with nothing on the disk.

live = LiveActivations("llava-hf/llava-1.5-7b-hf", "queries.json", image_dir="AMBER/image",
                       positions="all", mix_rows=262144)
for batch in live.batches(layer=5, n_targets=4, batch_size=4096, shuffle=True):
    batch["x"], batch["targets"]                                 # [B, H], [B, 4, H]
for batch in live.hook_batches(layers=range(32), batch_size=4096):
    batch["blocks.5.hook_resid_mid"], batch["blocks.5.hook_mlp_out"]    # [B, H] each
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import torch

from capture.live.live_model import LiveModel, fingerprint
from capture.live.live_rows import LiveSource
from capture.live.options import check_options, live_settings
from capture.live.wanted import wanted_hooks, wanted_layer
from capture.model.load import CaptureModel
from capture.model.named import look_up_model
from capture.opening import LoadedModel, load, open_capture
from capture.samples.benchmark import read_benchmark
from llava_amber_activations.batches.activation_batches import ActivationBatches, activation_batches
from llava_amber_activations.batches.hook_batches import AsPairs, HookNames, HooksAsked
from llava_amber_activations.batches.options import BatchOptions
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.layers import LayerWindow
from llava_amber_activations.formats.recipe import Recipe, XSite
from llava_amber_activations.parsing.checked_values import INT32_MAX, check_number

DEFAULT_MIX_ROWS = 65_536


class LiveActivations:
    """Activations of a model that runs here, over a query file or a dataset, opened once.

    The rows are those that `llava-amber capture` writes of the same model, queries and options: the
    same positions, sites and dtypes, the same checks, and the same reuse of prefixes.

    Args:
        model: an id on the Hub, or a folder; or a model that is loaded already, which
            `capture.prepare_model(model, processor, device)` has checked.
        dataset: a query file, or `hf:` and the name of a dataset; or several of them, in a list.
        image_dir: folder of the query file's pictures; or one for each dataset, in a list.
        mix_rows: rows that are mixed with one another where batches are shuffled, in memory on the
            model's device (`mix_bytes` says how much).
        samples_per_pass: most samples of a forward pass; None finds the most that fit.
        device: where the model goes; where it is None, to this process' accelerator, or the CPU.
        **options: fields of `capture.settings.CaptureSettings`, which are the options of
            `llava-amber capture`: `positions`, `dtype`, `sample_positions`, `on_error`, …

    Raises:
        ActivationsError: an input is missing or unusable, or the model cannot be captured, or an
            option is none that goes with batches.
    """

    def __init__(
        self,
        model: str | Path | CaptureModel,
        dataset: str | Path | Sequence[str | Path],
        *,
        image_dir: str | Path | Sequence[str | Path | None] | None = None,
        mix_rows: int = DEFAULT_MIX_ROWS,
        samples_per_pass: int | None = 8,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        check_options(options, is_loaded=isinstance(model, CaptureModel), device=device)
        check_number("mix_rows", mix_rows, 1, INT32_MAX)
        name = _name_of(model)
        settings = live_settings(name, dataset, image_dir, samples_per_pass, options)
        weights = None
        if isinstance(model, CaptureModel):
            benchmark = read_benchmark(settings)
            computed = str(next(model.body.parameters()).dtype).removeprefix("torch.")
            loaded = LoadedModel(model, computed)
            weights = fingerprint(model)
        else:
            look_up_model(name, settings.revision)
            benchmark = read_benchmark(settings)
            loaded = load(settings, _device(device))
        self._live = LiveModel(open_capture(settings, benchmark, loaded), mix_rows, weights)

    def __repr__(self) -> str:
        recipe = self.recipe
        return (
            f"LiveActivations({recipe.model!r} on {self._live.device}: {recipe.n_layers} layers of "
            f"width {recipe.hidden_size}, {self.n_samples} samples, positions {recipe.positions}, "
            f"{self._live.mix_rows} rows mixed)"
        )

    @property
    def recipe(self) -> Recipe:
        """How the activations are made."""
        return self._live.opened.recipe

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of which `batches` gives `x` with at least one target, ascending."""
        return tuple(LayerWindow(self.recipe.n_layers, 1).sources)

    @property
    def n_samples(self) -> int:
        """Samples of the query file or the dataset."""
        return self.recipe.n_samples

    @property
    def device(self) -> torch.device:
        """Where the model is, and batches come."""
        return self._live.device

    @property
    def skipped(self) -> Mapping[int, str]:
        """Why samples were skipped, by their numbers, as far as they have been run."""
        return MappingProxyType(self._live.skipped)

    def mix_bytes(self, n_vectors: int) -> int:
        """Return the bytes of the buffer that rows are mixed in.

        Args:
            n_vectors: of a row: 1 + `n_targets` of `batches`, two for each layer of
                `hook_batches`.
        """
        return self._live.mix_rows * self._live.row_bytes(n_vectors)

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

        As `Activations.batches`, on the model's device, but that nothing is read: each iteration
        runs the model over the samples, and no other layer is tapped.

        Args:
            layer: L, 0-based.
            n_targets: how many of the MLP outputs after `x`; the option `n_targets` of this object
                where it is None.
            first_target: 1 starts the targets at L+1 (this project's convention), 0 at L itself.
            x_site: where `x` is read; the option `x_site` of this object where it is None.
            **options: as `activation_batches` takes them.

        Raises:
            ActivationsError: the layer has no targets, or as `activation_batches`.
        """
        recipe = self.recipe
        wanted = wanted_layer(
            recipe.n_layers,
            layer,
            recipe.n_targets if n_targets is None else n_targets,
            first_target,
            x_site or str(recipe.x_site),
        )
        return activation_batches(LiveSource(self._live, wanted, columns=True), **options)

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

        Args:
            layers: which; all where it is None.
            names: as `Activations.hook_batches` takes them; and so the following.
            x_site: where `x` is read, one site or several, each of them tapped; the option `x_site`
                of this object where it is None.
            mlp_out: whether MLP outputs are wanted.
            rows: whether a batch says which rows it holds.
            prepared: cannot be had: nothing is on the disk.
            cache_dir: neither.
            **options: as `activation_batches` takes them.

        Raises:
            ActivationsError: a layer is none of the model's, nothing is wanted, or as
                `activation_batches`.
        """
        if prepared or cache_dir is not None:
            raise ActivationsError(
                "prepared=True and cache_dir are for data on the disk, and these batches come from "
                "the running model: leave them out, or capture and build first"
            )
        asked = HooksAsked(None if layers is None else tuple(layers), names, x_site, mlp_out, rows)
        sites = str(self.recipe.x_site) if x_site is None else x_site
        wanted, hooks = wanted_hooks(
            *(self.recipe.n_layers, asked.layers, sites),
            mlp_out=mlp_out,
            where=str(self.recipe.model),
        )
        if names == "layers" and len(wanted.sites) > 1:
            raise ActivationsError("names='layers' gives one x a layer: ask for one x_site")
        batches = activation_batches(LiveSource(self._live, wanted, columns=rows), **options)
        return batches.given_as(AsPairs(hooks)) if names == "layers" else batches


def live_activations(
    model: str | Path | CaptureModel,
    dataset: str | Path | Sequence[str | Path],
    layer: int,
    n_targets: int | None = None,
    *,
    image_dir: str | Path | Sequence[str | Path | None] | None = None,
    batch_size: int = 4096,
    shuffle: bool = False,
    epochs: int | None = 1,
    **options: Any,
) -> ActivationBatches:
    """Return one layer's batches: `LiveActivations(…).batches(layer, n_targets, …)`.

    Args:
        model: as `LiveActivations` takes it; and so `dataset` and `image_dir`.
        dataset: what the model is asked.
        layer: as `LiveActivations.batches` takes it; and so `n_targets`.
        n_targets: how many targets.
        image_dir: folder of the query file's pictures.
        batch_size: as `activation_batches` takes it; and so `shuffle` and `epochs`.
        shuffle: mix the rows.
        epochs: how many; without end where it is None.
        **options: of `LiveActivations`.

    Raises:
        ActivationsError: as either.
    """
    live = LiveActivations(model, dataset, image_dir=image_dir, **options)
    return live.batches(layer, n_targets, batch_size=batch_size, shuffle=shuffle, epochs=epochs)


def _name_of(model: str | Path | CaptureModel) -> str:
    if not isinstance(model, CaptureModel):
        return str(model)
    return str(getattr(model.whole.config, "_name_or_path", "") or type(model.whole).__name__)


def _device(device: torch.device | str | None) -> torch.device:
    """Return where a model goes: to this process' accelerator where nothing is said."""
    if device is not None:
        return torch.device(device)
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, torch.accelerator.current_device_index())
