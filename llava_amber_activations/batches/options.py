"""The options that all batches take, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

import torch

from llava_amber_activations.streams.row_choice import Wanted


class BatchOptions(TypedDict, total=False):
    """The keyword arguments of `activation_batches`, which says what each is."""

    batch_size: int
    shuffle: bool
    seed: int
    epochs: int | None
    drop_last: bool
    rank: int | None
    world_size: int | None
    dtype: torch.dtype | str | None
    device: torch.device | str | int | None
    pin_memory: bool
    where: Mapping[str, Wanted] | None
    samples: Iterable[int] | None
    positions: Iterable[int] | None
    skip_first: bool
