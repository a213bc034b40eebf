"""One batch, and what a DataLoader makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from llava_amber_activations.errors import ActivationsError


class Batch(dict[str, torch.Tensor]):
    """The tensors of some rows by the names of their columns: a dictionary, and no more."""


def _collate_batches(batches: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    """Return the one batch that a DataLoader without `batch_size=None` puts into a list.

    Raises:
        ActivationsError: the DataLoader was told to make batches of several batches.
    """
    if len(batches) > 1:
        raise ActivationsError(
            f"the DataLoader makes one batch of {len(batches)}, and these are batches already: "
            "write DataLoader(batches, batch_size=None), and the rows of a batch in "
            "activation_batches"
        )
    return batches[0]


def one_batch_at_a_time(kind: type) -> None:
    """Have a DataLoader pass objects of a type through, each of which is a batch already.

    In the way that `torch.utils.data._utils.collate` documents for types of one's own.
    """
    default_collate_fn_map[kind] = _collate_batches


one_batch_at_a_time(Batch)
