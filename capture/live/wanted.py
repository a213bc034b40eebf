"""Which vectors of which layers a batch has, what taps give them, and what each is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from capture.model.decoder import Decoder
from capture.model.taps import Taps
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.columns import TARGETS, X
from llava_amber_activations.formats.layers import LayerWindow, mlp_out_name, x_name
from llava_amber_activations.formats.recipe import X_SITES
from llava_amber_activations.parsing.checked_values import check_choice
from llava_amber_activations.reading.wanted_hooks import (
    HookVector,
    WantedHooks,
    check_wanted_layers,
    mlp_out_hook,
    x_hook,
)

_MLP_OUT = "mlp_out"


@dataclass(frozen=True)
class Tapped:
    """One vector of a row: `x` of a layer at a site, or its MLP's output.

    Attributes:
        site: where `x` is read; `mlp_out` for what the MLP returns.
        layer: whose.
    """

    site: str
    layer: int

    @property
    def name(self) -> str:
        """What a store calls it."""
        return mlp_out_name(self.layer) if self.site == _MLP_OUT else x_name(self.layer)


@dataclass(frozen=True)
class WantedVectors:
    """The vectors of a batch.

    Attributes:
        named: by its name in a batch, one vector, [B, H], or several together, [B, n, H].
        about: what a saved state must have in common with them.
    """

    named: dict[str, Tapped | tuple[Tapped, ...]]
    about: dict[str, Any]

    @property
    def all(self) -> list[Tapped]:
        """Each of them once, in the order in which the model computes them."""
        found = {each for named in self.named.values() for each in _several(named)}
        return sorted(found, key=lambda each: (each.layer, each.site == _MLP_OUT, each.site))

    @property
    def layers(self) -> list[int]:
        """Their layers, ascending."""
        return sorted({each.layer for each in self.all})

    @property
    def sites(self) -> list[str]:
        """The sites at which `x` is tapped: one at least, as taps have one."""
        sites = dict.fromkeys(each.site for each in self.all if each.site != _MLP_OUT)
        return list(sites) or [X_SITES[0]]

    def slots(self, tapped: Tapped | tuple[Tapped, ...]) -> list[int]:
        """Return where `tapping` gathers some vectors."""
        layers, sites = self.layers, self.sites
        found = []
        for each in _several(tapped):
            # Of each site every x, and then every MLP output.
            half = 1 if each.site == _MLP_OUT else 2 * sites.index(each.site)
            found.append(half * len(layers) + layers.index(each.layer))
        return found

    def shape(self, name: str, width: int) -> tuple[int, ...]:
        """Return the shape of a row of a batch's tensor."""
        named = self.named[name]
        return (width,) if isinstance(named, Tapped) else (len(named), width)

    def tapping(self, decoder: Decoder, dtype: torch.dtype) -> Taps:
        """Return taps of these layers alone, of vectors of a dtype."""
        layers, sites = self.layers, self.sites
        first = Taps(decoder, sites[0], dtype, layers)
        return first if len(sites) == 1 else _SeveralSites(decoder, sites, dtype, layers)


def wanted_layer(
    n_layers: int, layer: int, n_targets: int, first_target: int, x_site: str
) -> WantedVectors:
    """Return a layer's `x`, and its targets together.

    Raises:
        ActivationsError: the layer has no targets, or there is no such site.
    """
    check_choice("x_site", x_site, X_SITES)
    targets = LayerWindow(n_layers, n_targets, first_target).targets(layer)
    return WantedVectors(
        {X: Tapped(x_site, layer), TARGETS: tuple(Tapped(_MLP_OUT, each) for each in targets)},
        {"layer": layer, "n_targets": n_targets, "first_target": first_target, "x_site": x_site},
    )


def wanted_hooks(
    n_layers: int,
    layers: Iterable[int] | None,
    x_sites: str | Sequence[str],
    *,
    mlp_out: bool,
    where: str,
) -> tuple[WantedVectors, WantedHooks]:
    """Return several layers' vectors, each by its hook's name; and which of them are whose.

    Args:
        layers: all of the model's where it is None.
        x_sites: where `x` is read; nowhere, if it is empty.
        where: the layers are, as a message says it.

    Raises:
        ActivationsError: a layer is none of the model's, or there is no such site, or nothing is
            wanted.
    """
    sites = [x_sites] if isinstance(x_sites, str) else list(dict.fromkeys(x_sites))
    for site in sites:
        check_choice("x_site", site, X_SITES)
    if not sites and not mlp_out:
        raise ActivationsError("neither x nor mlp_out is asked for: there is nothing to tap")
    asked = list(range(n_layers) if layers is None else layers)
    check_wanted_layers(asked, n_layers, where)
    tapped = [Tapped(site, layer) for site in sites for layer in asked]
    outputs = [Tapped(_MLP_OUT, layer) for layer in asked if mlp_out]
    names = {each: x_hook(each.layer, each.site) for each in tapped}
    names |= {each: mlp_out_hook(each.layer) for each in outputs}
    of_hooks = WantedHooks(
        *(
            tuple(HookVector(names[each], each.layer, each.name) for each in some)
            for some in (tapped, outputs)
        )
    )
    hooks: dict[str, Tapped | tuple[Tapped, ...]] = {name: each for each, name in names.items()}
    return WantedVectors(hooks, {"hooks": list(hooks)}), of_hooks


def _several(tapped: Tapped | tuple[Tapped, ...]) -> tuple[Tapped, ...]:
    return (tapped,) if isinstance(tapped, Tapped) else tapped


class _SeveralSites(Taps):
    """Taps of `x` at several sites: those of each site, one after the other, as one."""

    def __init__(
        self, decoder: Decoder, sites: Sequence[str], dtype: torch.dtype, layers: Sequence[int]
    ) -> None:
        super().__init__(decoder, sites[0], dtype, layers)
        self._each = [Taps(decoder, site, dtype, layers) for site in sites]
        self._entered = ExitStack()

    def __enter__(self) -> Taps:
        for taps in self._each:
            self._entered.enter_context(taps)
        return self

    def __exit__(self, *raised: object) -> None:
        self._entered.close()

    @contextmanager
    def aimed(
        self, flat: torch.Tensor, device: torch.device, *, to_the_end: bool = True
    ) -> Iterator[torch.Tensor]:
        with ExitStack() as stack:
            # The last of them may end the pass: its hooks come after those of the others.
            *others, last = self._each
            aimed = [taps.aimed(flat, device) for taps in others]
            aimed.append(last.aimed(flat, device, to_the_end=to_the_end))
            parts = [stack.enter_context(each) for each in aimed]
            whole = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
            yield whole
        torch.cat(parts, out=whole)
