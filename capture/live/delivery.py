"""What windows gave, joined into one batch of the dtype, and on the device, that are wanted."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch

from capture.live.chunk_rows import Tensors
from llava_amber_activations.vectors.batch import Batch
from llava_amber_activations.vectors.gather import beyond_float16


def deliver(
    parts: Sequence[Tensors],
    vectors: Container[str],
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> Batch:
    """Join parts, one after the other, into a batch.

    Args:
        vectors: the names of those tensors that are vectors, all of them finite.
        dtype: of the batch's vectors; as they are where it is None.
        device: of the batch; where the parts are if it is None.

    Raises:
        ActivationsError: `dtype` cannot hold a number.
    """
    batch = Batch()
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if name in vectors and dtype is not None:
            tensor = _converted(tensor, dtype)
        batch[name] = tensor if device is None else tensor.to(device)
    return batch


def _converted(vectors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return vectors, all of them finite, in another dtype.

    Raises:
        ActivationsError: it cannot hold one of their numbers.
    """
    converted = vectors.to(dtype)
    if dtype == torch.float16 != vectors.dtype:
        n_lost = int(converted.isfinite().all(dim=-1).logical_not().sum())
        if n_lost:
            raise beyond_float16(n_lost)
    return converted
