"""What the modules of a decoder layer are called with, and what they return, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llava_amber_activations.errors import ActivationsError

# Rows of a pass that are compared, evenly spread over it; and those that are computed again.
_MOST_ROWS = 32
_MOST_PLACES = 8


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states that a module was called with: the first tensor, [batch, T, H].

    Raises:
        ActivationsError: there is none.
    """
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    value = kwargs.get("hidden_states")
    if not isinstance(value, torch.Tensor):
        value = next(_tensors(args, kwargs), None)
    if value is None:
        raise ActivationsError("a decoder layer was called without hidden states")
    return value


def output_tensor(output: Any) -> torch.Tensor:
    """Return the states that a module returned, [batch, T, H], alone or first in a tuple.

    Mixtures of experts return what their router decided beside them.

    Raises:
        ActivationsError: it returned something else.
    """
    value = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(value, torch.Tensor):
        raise ActivationsError(
            f"a decoder layer's module returned {type(value).__name__}, not hidden states"
        )
    return value


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    values = (*args, *kwargs.values())
    return (value for value in values if isinstance(value, torch.Tensor))


@dataclass(eq=False)
class Call:
    """One call of a module inside a layer.

    Attributes:
        path: of the module in the layer.
        start, end: when it began and ended, among all calls of the layer.
        given: some rows of its first tensor, [rows, H] on the CPU; None where that is no states.
        others: the same rows of all else that it was given and that are states.
        returned: the same rows of what it returned, or None; `width` is of what it returned.
        args, kwargs: the call itself.
        places: int64, a few rows but the first, the last of them first; None where it returned
            not one for each position.
        at_places: what it returned there, [places, width] on its device.
    """

    path: str
    module: nn.Module
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: torch.Tensor | None
    others: tuple[torch.Tensor, ...]
    end: int = -1
    returned: torch.Tensor | None = None
    width: int | None = None
    places: torch.Tensor | None = None
    at_places: torch.Tensor | None = None

    @property
    def depth(self) -> int:
        """How deep in the layer its module is; 1 is a child."""
        return self.path.count(".") + 1

    def holds(self, other: Call) -> bool:
        """Whether another call is a part of this one."""
        return self.start < other.start and other.end < self.end

    @property
    def multiplies(self) -> bool:
        """Whether the module has matrices, as an MLP or an attention has, and no norm."""
        return any(parameter.ndim > 1 for parameter in self.module.parameters())


@dataclass
class LayerCalls:
    """All calls of one layer in one pass.

    Attributes:
        layer: the module.
        given, returned: of the layer, as in `Call`.
        shape: of what the layer returned.
        calls: in the order in which they began; of modules that ran once.
        every: all of them.
    """

    layer: nn.Module
    given: torch.Tensor | None
    returned: torch.Tensor | None
    shape: tuple[int, ...]
    calls: list[Call]
    every: list[Call]


@dataclass
class _Layer:
    """A layer that is being listened to."""

    module: nn.Module
    calls: list[Call] = field(default_factory=list)
    clock: int = 0
    given: torch.Tensor | None = None


class Listening:
    """Hears every call inside some layers, and hands them on when a layer ends.

    Args:
        layers: of one or more stacks.
        n_rows: tokens of the pass.
        width: H.
        heard: called with the layer's place in `layers` and its calls, each time that it ran.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        n_rows: int,
        width: int,
        heard: Callable[[int, LayerCalls], None],
    ) -> None:
        self._layers = [_Layer(layer) for layer in layers]
        self._n_rows, self._width = n_rows, width
        self._heard = heard
        self._hooks = ExitStack()
        self._paused = False

    def __enter__(self) -> Listening:
        for place, layer in enumerate(self._layers):
            self._hook(layer.module, self._begins(layer), self._ends(place, layer))
            for path, module in layer.module.named_modules():
                if path:
                    self._hook(module, self._called(layer, path), self._returned(layer))
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.close()

    def _hook(self, module: nn.Module, before: Callable[..., None], after: Any) -> None:
        for handle in (
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ):
            self._hooks.callback(handle.remove)

    def _begins(self, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            layer.calls, layer.clock = [], 0
            value = next(_tensors(args, kwargs), None)
            layer.given = self._rows(value)

        return hook

    def _ends(self, place: int, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
            times = Counter(call.path for call in layer.calls)
            once = [call for call in layer.calls if times[call.path] == 1]
            self._paused = True
            try:
                self._heard(
                    place,
                    LayerCalls(
                        layer.module,
                        layer.given,
                        self._rows(value),
                        shape,
                        once,
                        layer.calls,
                    ),
                )
            finally:
                self._paused = False
                layer.calls, layer.given = [], None

        return hook

    def _called(self, layer: _Layer, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._paused:
                return
            states = list(_tensors(args, kwargs))
            first = first_tensor(args, kwargs) if states else None
            others = (self._rows(value) for value in states if value is not first)
            layer.calls.append(
                Call(
                    path,
                    module,
                    layer.clock,
                    args,
                    kwargs,
                    self._rows(first),
                    tuple(value for value in others if value is not None),
                )
            )
            layer.clock += 1

        return hook

    def _returned(self, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._paused:
                return
            call = next(
                (call for call in reversed(layer.calls) if call.module is module and call.end < 0),
                None,
            )
            if call is None:
                return
            value = output[0] if isinstance(output, tuple) and output else output
            call.returned = self._rows(value)
            if isinstance(value, torch.Tensor) and value.ndim > 1:
                call.width = value.shape[-1]
                if value.numel() == self._n_rows * call.width:
                    n_places = min(_MOST_PLACES, self._n_rows // 2)
                    call.places = torch.linspace(self._n_rows - 1, 1, max(n_places, 1)).long()
                    call.at_places = value.reshape(-1, call.width)[call.places]
            call.end = layer.clock
            layer.clock += 1

        return hook

    def _rows(self, value: Any) -> torch.Tensor | None:
        """Return some rows of states, as copies on the CPU; None of what is none."""
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return None
        if value.ndim < 2 or value.shape[-1] != self._width:
            return None
        if value.numel() != self._n_rows * self._width:
            return None
        rows = value.reshape(-1, self._width)
        return rows[:: -(-len(rows) // _MOST_ROWS)].to("cpu", copy=True)
