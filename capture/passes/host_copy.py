"""A batch's vectors on their way from the device to the host, while the device goes on."""

from __future__ import annotations

import torch

_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class HostCopy:
    """Copies a tensor to pinned memory on a stream of its own; `tensor` waits for it.

    On a CPU there is nothing to copy.
    """

    def __init__(self, source: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if source.device.type != "cuda":
            self._host = source.cpu()
            return
        device = source.device
        if device not in _side_streams:
            _side_streams[device] = torch.cuda.Stream(device)
        stream = _side_streams[device]
        self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._host.copy_(source, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(stream)
        # The allocator must not hand the source's memory out before the copy has read it.
        source.record_stream(stream)

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return self._host.nbytes

    def tensor(self) -> torch.Tensor:
        """Return the tensor on the host, once it is there."""
        if self._done is not None:
            self._done.synchronize()
        return self._host
