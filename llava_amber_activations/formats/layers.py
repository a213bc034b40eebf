"""Which layers are the targets of which, and what a layer's vectors are called."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from llava_amber_activations.errors import ActivationsError

DEFAULT_N_TARGETS = 16
_MISSING_SAID = 8
_MOST_DIGITS = 18


@dataclass(frozen=True)
class LayerWindow:
    """The targets of every layer of a model.

    The targets of layer L are the MLP outputs of L+first_target, L+first_target+1, … : `n_targets`
    of them, or as many as there are layers left. With `first_target=1` (this project's convention)
    and 32 layers, L0 … L15 have 16 targets, L16 has 15 and L30 has one. With `first_target=0` (the
    convention of Anthropic's circuit-tracing paper, and of most CLT trainers) the targets start at
    L itself.

    Attributes:
        n_layers: decoder layers of the model.
        n_targets: the most targets a layer has.
        first_target: distance from a layer to its first target, 0 or 1.
    """

    n_layers: int
    n_targets: int = DEFAULT_N_TARGETS
    first_target: int = 1

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise ActivationsError(f"n_layers must be at least 1, got {self.n_layers}")
        if self.n_targets < 1:
            raise ActivationsError(f"n_targets must be at least 1, got {self.n_targets}")
        if self.first_target not in (0, 1):
            raise ActivationsError(f"first_target must be 0 or 1, got {self.first_target}")

    @property
    def sources(self) -> range:
        """The layers that have a target at all: each one is a split."""
        return range(self.n_layers - self.first_target)

    def targets(self, layer: int) -> range:
        """Return the layers whose MLP outputs are the targets of `layer`, in order.

        Raises:
            ActivationsError: `layer` has no targets, or is no layer of the model.
        """
        if layer not in self.sources:
            last = self.n_layers - self.first_target - 1
            raise ActivationsError(
                f"layer {layer} has no targets: the layers that do are 0 to {last}"
            )
        first = layer + self.first_target
        return range(first, min(first + self.n_targets, self.n_layers))

    def whole_sources(self, kept: Container[int]) -> tuple[int, ...]:
        """Return the sources that are kept, with all of their targets, ascending."""
        return tuple(
            layer
            for layer in self.sources
            if layer in kept and all(target in kept for target in self.targets(layer))
        )


def check_n_targets(n_targets: int, n_layers: int, first_target: int = 1) -> None:
    """Check a number of targets that somebody typed: no layer has more than there are layers.

    The default is right for every model, and gives all that there are in a small one.

    Raises:
        ActivationsError: the model has fewer layers.
    """
    most = n_layers - first_target
    if n_targets > max(most, DEFAULT_N_TARGETS):
        raise ActivationsError(
            f"--n-targets {n_targets} is more than a model of {n_layers} layers has: the first of "
            f"them has {most} targets"
        )


def check_kept(layers: Sequence[int] | None, n_layers: int) -> None:
    """Check layers to keep, which somebody typed before the model was known.

    Args:
        layers: ascending; None keeps all.

    Raises:
        ActivationsError: the model has fewer layers.
    """
    missing = [layer for layer in layers or () if layer >= n_layers]
    if missing:
        raise ActivationsError(
            f"layers {missing[:_MISSING_SAID]} are not in this model: it has 0 to {n_layers - 1}"
        )


def split_name(layer: int) -> str:
    """Name of a layer's split, and of its config: `L5`."""
    return f"L{layer}"


def split_layer(split: str) -> int | None:
    """Layer of a split's name: 5 of `L5`; None of the split of all layers."""
    number = split.removeprefix("L")
    return int(number) if number != split and number.isdecimal() else None


def x_name(layer: int) -> str:
    """Name of a layer's `x`, in a chunk and in `all_layers`: `x_05`."""
    return f"x_{layer:02d}"


def mlp_out_name(layer: int) -> str:
    """Name of a layer's MLP output, in a chunk and in `all_layers`: `mlp_out_05`."""
    return f"mlp_out_{layer:02d}"


def layers_text(layers: Iterable[int]) -> str:
    """Return a list of layers as `parse_layers` takes it: `0,5,10-12`, ascending and each once."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def parse_layers(
    text: str, available: range | tuple[int, ...], where: str = "in this data"
) -> tuple[int, ...]:
    """Parse a list of layers such as `0-30` or `0,5,10-12`, ascending and each once.

    Args:
        where: the layers are available, as a message says it.

    Raises:
        ActivationsError: the text is not such a list, or names a layer that is not `available`.
    """
    have = set(available)
    layers: set[int] = set()
    missing: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first,)
        if not all(end.isdecimal() and len(end) <= _MOST_DIGITS for end in ends):
            raise ActivationsError(f"'{text}' is not a list of layers: write 5, 0-30 or 0,5,10-12")
        if dash and int(first) > int(last):
            raise ActivationsError(f"the layers {first}-{last} run backwards: write {last}-{first}")
        asked = range(int(first), int(last if dash else first) + 1)
        # The first few are enough to say, however large a number was typed.
        missing += islice((layer for layer in asked if layer not in have), _MISSING_SAID)
        layers.update(layer for layer in have if layer in asked)
    if missing or not layers:
        said = missing[:_MISSING_SAID] or text
        raise ActivationsError(f"layers {said} are not {where}: it has {_said(available)}")
    return tuple(sorted(layers))


def _said(layers: range | tuple[int, ...]) -> str:
    if not layers:
        return "none"
    first, last = min(layers), max(layers)
    return f"{first} to {last}" if len(layers) == last - first + 1 else layers_text(layers)
