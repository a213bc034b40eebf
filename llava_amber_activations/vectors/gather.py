"""Rows copied out of the buffers that hold them into tensors, in any order, as fast as memory is.

Where one buffer holds all vectors of a batch, as the mapping of a prepared data set does, one call
copies them. Otherwise they are copied run by run: vectors that follow each other, as the targets
of a row do, at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.formats.arrow_vectors import Vectors
from llava_amber_activations.vectors.batch import Batch
from llava_amber_activations.vectors.finite import finite_rows_of_array
from llava_amber_activations.vectors.held_rows import (
    HeldRows,
    HeldVectors,
    Kind,
    RowNumbers,
    check_alike,
)
from llava_amber_activations.vectors.recycled import RecycledMemory

# How much is converted to another dtype at once.
_CONVERTED_BYTES = 2**20

# Some rows, and which of them are wanted.
Part = tuple[HeldRows, RowNumbers]


class BatchGather:
    """Copies rows into batches; memory serves the next batch, and the next epoch.

    Sent to another process, it begins anew there.

    Args:
        in_parallel: copy with all of torch's threads. Without, where others decode meanwhile: they
            would wait for each other.
        dtype: of the batches' vectors; that of the rows where it is None.
    """

    def __init__(self, *, in_parallel: bool, dtype: torch.dtype | None = None) -> None:
        self._in_parallel = in_parallel
        self._dtype = dtype
        self._memory = RecycledMemory()

    def __reduce__(self) -> Any:
        return partial(BatchGather, in_parallel=self._in_parallel, dtype=self._dtype), ()

    def batch(self, parts: Sequence[Part]) -> Batch:
        """Copy rows of several parts, one after the other, into one batch.

        Returns:
            Numbers [B], vectors [B, H], targets [B, n, H]; the caller's own.

        Raises:
            ActivationsError: the parts differ in the columns, or in shapes or dtypes of vectors, or
                a finite number is too large for the batches' dtype.
        """
        parts = [part for part in parts if len(part[1])] or list(parts[:1])
        if len(parts) > 1:
            check_alike([held for held, _ in parts])
        first = parts[0][0]
        batch = Batch()
        for name in first.numbers:
            columns = [held.numbers[name][rows] for held, rows in parts]
            batch[name] = torch.from_numpy(np.concatenate(columns))
        kinds: dict[Kind, list[str]] = {}
        for name, vectors in first.vectors.items():
            kinds.setdefault(vectors.kind, []).append(name)
        n_rows = sum(len(rows) for _, rows in parts)
        for names in kinds.values():
            batch.update(self._vectors(parts, names, n_rows))
        return batch

    def _vectors(self, parts: Sequence[Part], names: Sequence[str], n_rows: int) -> Batch:
        """Copy vectors of one kind: those of all names into one array, name after name."""
        first = parts[0][0].vectors[names[0]]
        windows = [part.windows[first.kind] for part, _ in parts]
        before = np.cumsum([0, *map(len, windows)])
        buffers, starts = [], []
        # Names of a part mostly share them.
        looked_up: dict[tuple[int, int], RowNumbers] = {}
        for name in names:
            for part, (held, rows) in enumerate(parts):
                vectors = held.vectors[name]
                found = vectors.starts[rows]
                starts.append(found.reshape(-1))
                if before[-1] > 1:
                    key = part, id(vectors.buffers)
                    if key not in looked_up:
                        looked_up[key] = vectors.buffers[rows] + before[part]
                    n = found.shape[1]
                    buffers.append(looked_up[key] if n == 1 else looked_up[key].repeat(n))
        out = self._copied(
            [each for of_part in windows for each in of_part],
            np.concatenate(buffers) if buffers else None,
            np.concatenate(starts),
            first,
        )
        batch, at = Batch(), 0
        for name in names:
            shape = parts[0][0].vectors[name].shape
            n = n_rows * math.prod(shape[:-1])
            batch[name] = out[at : at + n].view(n_rows, *shape)
            at += n
        return batch

    def _copied(
        self,
        windows: Sequence[torch.Tensor],
        buffers: RowNumbers | None,
        starts: RowNumbers,
        like: HeldVectors,
    ) -> torch.Tensor:
        """Return copies of the vectors that begin at `starts`, int64 [n]: [n, H]."""
        shape = len(starts), like.shape[-1]
        if self._dtype in (None, torch.from_numpy(np.empty(0, like.dtype)).dtype):
            array = self._memory.empty(shape, like.dtype)
            _copy(windows, buffers, starts, array, in_parallel=self._in_parallel)
            return torch.from_numpy(array)
        # A few at a time, converted while they are in the processor's cache.
        step = max(1, _CONVERTED_BYTES // (shape[1] * like.dtype.itemsize))
        piece = self._memory.empty((min(step, shape[0]), shape[1]), like.dtype)
        out = self._empty(shape)
        for begin in range(0, shape[0], step):
            chosen = slice(begin, begin + step)
            into = piece[: len(starts[chosen])]
            of_each = None if buffers is None else buffers[chosen]
            _copy(windows, of_each, starts[chosen], into, in_parallel=self._in_parallel)
            out[chosen].copy_(torch.from_numpy(into))
            if out.dtype == torch.float16:
                _check_range(into, out[chosen])
        return out

    def _empty(self, shape: tuple[int, int]) -> torch.Tensor:
        """Return a tensor of the batches' dtype, of which numpy may know only the size."""
        size = torch.empty(0, dtype=self._dtype).element_size()
        bits = self._memory.empty(shape, np.dtype(f"f{size}"))
        return torch.from_numpy(bits).view(self._dtype or torch.float32)


def _check_range(before: Vectors, after: torch.Tensor) -> None:
    """Check that what was finite still is.

    Raises:
        ActivationsError: a number was larger than the narrower dtype's largest.
    """
    lost = finite_rows_of_array(before) & ~finite_rows_of_array(after.numpy())
    if lost.any():
        raise beyond_float16(int(lost.sum()))


def beyond_float16(n_vectors: int) -> ActivationsError:
    """Return the error of vectors that a batch of float16 cannot hold."""
    return ActivationsError(
        f"{n_vectors} vectors of a batch hold numbers beyond float16, whose largest is 65504: ask "
        "for dtype float32 or bfloat16"
    )


def _copy(
    windows: Sequence[torch.Tensor],
    buffers: RowNumbers | None,
    starts: RowNumbers,
    out: Vectors,
    *,
    in_parallel: bool,
) -> None:
    """Copy the vectors that begin at `starts`, int64 [n], into `out`, [n, H].

    Args:
        buffers: int64 [n], whose of the windows; None where there is one buffer, or none.
    """
    if not len(starts):
        return
    fullest, elsewhere = 0, np.empty(0, np.int64)
    if buffers is not None:
        fullest = int(np.bincount(buffers).argmax())
        elsewhere = np.flatnonzero(buffers != fullest)
    if 2 * len(elsewhere) > len(starts) or not (in_parallel or windows[fullest].is_contiguous()):
        every = np.arange(len(starts))
        _copy_runs(
            windows, np.zeros_like(every) if buffers is None else buffers, starts, every, out
        )
        return
    here = starts
    if len(elsewhere):
        # One call copies something into the rows of the others too.
        here = starts.copy()
        here[elsewhere] = 0
    if in_parallel:
        only = windows[fullest]
        torch.index_select(only, 0, torch.from_numpy(here), out=torch.from_numpy(out))
    else:
        # The mode says that numpy need not look again whether they are in range, nor copy twice.
        np.take(windows[fullest].numpy(), here, axis=0, out=out, mode="clip")
    if buffers is not None:
        _copy_runs(windows, buffers, starts, elsewhere, out)


def _copy_runs(
    windows: Sequence[torch.Tensor],
    buffers: RowNumbers,
    starts: RowNumbers,
    chosen: RowNumbers,
    out: Vectors,
) -> None:
    """Copy the chosen ones of some vectors: those that follow each other at once."""
    if not len(chosen):
        return
    arrays = [each.numpy() for each in windows]
    # From a window to that of the vector behind it.
    steps = np.array([out.shape[1] // each.stride(0) for each in windows])
    buffers, starts = buffers[chosen], starts[chosen]
    breaks = (np.diff(buffers) != 0) | (np.diff(starts) != steps[buffers[1:]])
    breaks |= np.diff(chosen) != 1
    firsts = np.concatenate([[0], 1 + np.flatnonzero(breaks)])
    sizes = np.diff(firsts, append=len(chosen))
    runs = (chosen[firsts], sizes, buffers[firsts], starts[firsts])
    for into, size, buffer, start in zip(*(each.tolist() for each in runs), strict=True):
        if size == 1:
            out[into] = arrays[buffer][start]
            continue
        step = int(steps[buffer])
        out[into : into + size] = arrays[buffer][start : start + (size - 1) * step + 1 : step]
