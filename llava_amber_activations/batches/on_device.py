"""Batches on their way to another device, one ahead of whoever consumes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import get_worker_info

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.vectors.batch import Batch

_T = TypeVar("_T")


def device_of(device: torch.device | str | int | None, *, pin_memory: bool) -> torch.device | None:
    """Return the device that was asked for, if this machine has it.

    Raises:
        ActivationsError: there is no such device here, or no accelerator to pin memory for.
    """
    if pin_memory and not torch.accelerator.is_available():
        raise ActivationsError(
            "pin_memory=True makes copies to an accelerator faster, and torch sees none here: "
            "leave it out"
        )
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ActivationsError(f"batches cannot go to device {device!r}: {reason}") from None
    return found


def on_device(
    batches: Iterator[tuple[_T, Batch]], device: torch.device | None, *, pin_memory: bool
) -> Iterator[tuple[_T, Batch]]:
    """Yield batches on a device; what comes with each of them, unchanged.

    On CUDA each batch is copied by a stream of its own from pinned memory, while the one before it
    is used and the next one is gathered: one batch is on its way, and is in memory, beside the one
    that was yielded.

    Args:
        pin_memory: have batches that stay on the CPU in pinned memory.

    Raises:
        ActivationsError: this is a DataLoader's worker process, which has no device.
    """
    if device is None or device.type == "cpu":
        for beside, batch in batches:
            yield beside, _map(batch, torch.Tensor.pin_memory) if pin_memory else batch
        return
    if get_worker_info() is not None:
        raise ActivationsError(
            "device= is for batches that the training process reads itself, and these are read in "
            "a DataLoader's worker processes: leave it out, and move each batch in the loop"
        )
    if device.type != "cuda":
        for beside, batch in batches:
            yield beside, _map(batch, lambda tensor: tensor.to(device))
        return
    yield from _on_cuda(batches, device)


def _on_cuda(
    batches: Iterator[tuple[_T, Batch]], device: torch.device
) -> Iterator[tuple[_T, Batch]]:
    side: Any = torch.cuda.Stream(device)
    under_way: tuple[_T, Batch, Any] | None = None

    def arrived(beside: _T, batch: Batch, copied: Any) -> tuple[_T, Batch]:
        """Have the consumer's stream wait for a batch, whose memory is kept until it is used."""
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in batch.values():
            tensor.record_stream(current)
        return beside, batch

    for beside, batch in batches:
        # torch keeps pinned memory until the copy from it has ended, and uses it again.
        pinned = _map(batch, torch.Tensor.pin_memory)
        with torch.cuda.stream(side):
            moved = _map(pinned, lambda tensor: tensor.to(device, non_blocking=True))
            copied = side.record_event()
        if under_way is not None:
            yield arrived(*under_way)
        under_way = beside, moved, copied
    if under_way is not None:
        yield arrived(*under_way)


def _map(batch: Batch, function: Any) -> Batch:
    return Batch({name: function(tensor) for name, tensor in batch.items()})
