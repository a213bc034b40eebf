"""Batches of torch tensors out of a layer's dataset."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import numpy as np
import pyarrow as pa
import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.schema import TARGETS, arrow_to_targets, arrow_to_vectors

_BUFFER_BATCHES = 16


def activation_batches(
    dataset: datasets.Dataset | datasets.IterableDataset,
    batch_size: int = 4096,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of a layer: what `load_activations`, or `load_dataset` on a layer, returned.

    Vectors go from Arrow's buffers into tensors of their own dtype (float16 stays float16) in one
    copy, never through Python lists; the tensors are the caller's own to change.

    Args:
        dataset: one split, prepared or streaming.
        batch_size: rows of a batch, B.
        shuffle: visit a prepared dataset's rows in random order; a stream's shards in random order,
            and its rows through a buffer of 16 batches.
        seed: of the order; another epoch wants another seed.
        drop_last: leave out a last batch of fewer rows.

    Yields:
        `{'x': [B, H], 'targets': [B, n, H], 'sample': [B], …}`: every column but the strings;
        integers are int32.

    Raises:
        ActivationsError: `dataset` is not one split.
    """
    if isinstance(dataset, datasets.IterableDataset):
        if shuffle:
            dataset = dataset.shuffle(seed=seed, buffer_size=_BUFFER_BATCHES * batch_size)
        tables = dataset.with_format("arrow").iter(batch_size, drop_last_batch=drop_last)
    elif isinstance(dataset, datasets.Dataset):
        tables = _prepared_tables(dataset, batch_size, shuffle, seed, drop_last)
    else:
        raise ActivationsError(
            f"activation_batches takes one split, not a {type(dataset).__name__}: choose a layer, "
            'as in dataset["L5"]'
        )
    for table in tables:
        yield table_to_tensors(table)


def _prepared_tables(
    dataset: datasets.Dataset, batch_size: int, shuffle: bool, seed: int, drop_last: bool
) -> Iterator[pa.Table]:
    formatted = dataset.with_format("arrow")
    n_rows = len(dataset)
    stop = n_rows - n_rows % batch_size if drop_last else n_rows
    order = np.random.default_rng(seed).permutation(n_rows) if shuffle else None
    for start in range(0, stop, batch_size):
        end = min(start + batch_size, n_rows)
        yield formatted[start:end] if order is None else formatted[order[start:end]]


def table_to_tensors(table: pa.Table) -> dict[str, torch.Tensor]:
    """Copy a table's numbers into tensors: vectors [B, H], targets [B, n, H], integers [B]."""
    tensors = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_fixed_size_list(field.type):
            values = arrow_to_vectors(column)
        elif field.name == TARGETS:
            values = arrow_to_targets(column)
        elif pa.types.is_integer(field.type):
            values = column.to_numpy()
        else:
            continue
        # The prepared file is mapped read-only: writing to a view of it would end the process.
        tensors[field.name] = torch.from_numpy(np.array(values))
    return tensors
