"""Taps: hooks that gather the wanted rows of every layer while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from capture.model.decoder import Decoder
from capture.model.structure.calls import first_tensor, output_tensor


class _LastTapPassedError(Exception):
    """A pass has given the last vector that is wanted of it."""


class Taps:
    """Gathers `x` and `mlp_out` of layers into one buffer, from the device of each layer.

    Used as a context manager around forward passes, each inside an `aimed` block.

    Args:
        decoder: of the model.
        x_site: where `x` is read.
        dtype: of the buffer; rows are converted as they are gathered.
        layers: to tap, ascending; all if None.

    Attributes:
        layers: that are tapped, ascending.
    """

    def __init__(
        self,
        decoder: Decoder,
        x_site: str,
        dtype: torch.dtype,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.layers = tuple(range(len(decoder.layers)) if layers is None else layers)
        self._decoder = decoder
        self._x_site = x_site
        self._dtype = dtype
        self._hooks = ExitStack()
        self._flat = torch.empty(0, dtype=torch.int64)
        self._buffer: torch.Tensor | None = None
        self._to_the_end = True

    def __enter__(self) -> Taps:
        for slot, layer in enumerate(self.layers):
            x = self._decoder.site(layer, self._x_site)
            adds, scale = self._decoder.adds(layer), self._decoder.scale(layer)
            output_hook = self._output_hook(len(self.layers) + slot, scale)
            for handle in (
                x.register_forward_pre_hook(self._input_hook(slot), with_kwargs=True),
                adds.register_forward_hook(output_hook),
            ):
                self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.close()

    @contextmanager
    def aimed(
        self, flat: torch.Tensor, device: torch.device, *, to_the_end: bool = True
    ) -> Iterator[torch.Tensor]:
        """Choose the rows of the forward pass that runs inside the block.

        Args:
            flat: int64 [rows], into the pass's [batch × T] tokens.
            device: of the buffer.
            to_the_end: run the layers behind the last tapped one, too. Without them the block ends
                inside the pass, which then returns nothing.

        Yields:
            [2 × layers, rows, H], filled when the block ends: `x` of every tapped layer, then
            `mlp_out` of every one.
        """
        self._flat = flat.to(device)
        shape = (2 * len(self.layers), len(flat), self._decoder.hidden_size)
        self._buffer = torch.empty(shape, dtype=self._dtype, device=device)
        self._to_the_end = to_the_end or self.layers[-1] == len(self._decoder.layers) - 1
        try:
            yield self._buffer
        except _LastTapPassedError:
            pass
        finally:
            # The buffer is the caller's now. Passes outside the block (generation) are not tapped.
            self._buffer = None

    def _gather(
        self, slot: int, states: torch.Tensor, scale: float | torch.Tensor | None = None
    ) -> None:
        if self._buffer is None:
            return
        flat = self._flat.to(states.device)
        rows = states.reshape(-1, states.shape[-1]).index_select(0, flat)
        if scale is not None:
            rows = rows * (scale.to(rows) if isinstance(scale, torch.Tensor) else scale)
        self._buffer[slot].copy_(rows)

    def _input_hook(self, slot: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._gather(slot, first_tensor(args, kwargs))

        return hook

    def _output_hook(self, slot: int, scale: float | torch.Tensor | None) -> Callable[..., None]:
        last = 2 * len(self.layers) - 1

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._gather(slot, output_tensor(output), scale)
            # Of a layer, its MLP's output is the last to come.
            if self._buffer is not None and not self._to_the_end and slot == last:
                raise _LastTapPassedError

        return hook
