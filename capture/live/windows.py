"""Rows in windows: as many as are held together, each window in an order of its own.

Mixed, chunks come in random order, and their rows fill a buffer on the device, which is one window;
its rows are given in random order, and then the rows after them fill it again. A window ends where
the buffer is full, within a chunk where need be. The first window is small, so that its rows come
soon, and the next are twice as large each, up to the whole buffer. In order, each chunk is a
window.

    chunks, in the epoch's order   | c₀          | c₁          | c₂          | c₃ …
    windows of it                  | w₀ | w₁        | w₂                 | w₃ …

So where a window begins, by chunk and row, is all that going on in the middle of it needs: its
chunks are run again, and the rows of it that were given are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from capture.live.chunk_rows import ChunkRows, Tensors
from llava_amber_activations.errors import ActivationsError

# Of a mixed epoch, unless a batch is more.
FIRST_WINDOW_ROWS = 64


@dataclass(frozen=True)
class Place:
    """Where in an epoch's windows something stands.

    Attributes:
        chunk: how many chunks of the epoch's order lie before the one that the window begins in.
        row: of that chunk, where it begins.
        window: its number.
        given: how many rows of the window, in its own order, come before.
    """

    chunk: int = 0
    row: int = 0
    window: int = 0
    given: int = 0

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Place:
        """Return the place that a saved state says by four numbers; the beginning by none.

        Raises:
            ActivationsError: they are not four.
        """
        if len(numbers) not in (0, 4):
            raise ActivationsError(
                f"the saved state is damaged: its place is {len(numbers)} numbers, not 4"
            )
        return cls(*numbers)

    def numbers(self) -> tuple[int, ...]:
        """Return it as a saved state says it."""
        return self.chunk, self.row, self.window, self.given


@dataclass(frozen=True)
class Window:
    """Rows that are held together, until the next window is asked for.

    Attributes:
        begin: where it begins.
        following: where the next one does.
        rows: the batch's tensors of them, [n_rows or more, …] each.
        order: int64 [n_rows], on the device, the order in which they are given; None where it is
            that in which they lie.
    """

    begin: Place
    following: Place
    n_rows: int
    rows: Tensors
    order: torch.Tensor | None

    def after(self, given: int) -> Place:
        """Return where it stands after so many rows of it."""
        if given == self.n_rows:
            return self.following
        return Place(self.begin.chunk, self.begin.row, self.begin.window, given)

    def take(self, start: int, stop: int) -> Tensors:
        """Return the rows `start` to `stop` of its order, in memory of their own."""
        if self.order is None:
            return {name: rows[start:stop].clone() for name, rows in self.rows.items()}
        chosen = self.order[start:stop]
        return {name: rows.index_select(0, chosen) for name, rows in self.rows.items()}


def windows_in_order(
    chunks: Iterator[ChunkRows], begin: Place, empty: Callable[[int], Tensors]
) -> Iterator[Window]:
    """Yield each chunk that has rows as a window.

    Args:
        chunks: from the one of `begin` on.
        empty: makes a batch's tensors for so many rows.
    """
    number = begin.chunk
    while (chunk := next(chunks, None)) is not None:
        number += 1
        if len(chunk):
            n_rows, rows = len(chunk), empty(len(chunk))
            chunk.copy(0, n_rows, rows)
            # While the next chunk runs, nothing holds this one's.
            del chunk
            window = Window(Place(number - 1), Place(number), n_rows, rows, None)
            del rows
            yield window
            del window


def mixed_windows(
    chunks: Iterator[ChunkRows],
    begin: Place,
    buffer: Mapping[str, torch.Tensor],
    first_rows: int,
    permuted: Callable[[int, int], torch.Tensor],
) -> Iterator[Window]:
    """Fill a buffer again and again, and yield what it holds.

    Args:
        chunks: from the one of `begin` on.
        buffer: a batch's tensors for as many rows as are mixed.
        first_rows: of the first window.
        permuted: of a window's number and its rows, the order of them on the device.

    Raises:
        ActivationsError: the chunk of `begin` has not so many rows.
    """
    most_rows = len(next(iter(buffer.values())))
    chunk: ChunkRows | None = None
    place, row = begin, begin.row
    number = begin.chunk
    while True:
        wanted = min(first_rows << min(place.window, most_rows.bit_length()), most_rows)
        filled = 0
        while filled < wanted:
            if chunk is None:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                if row > len(chunk):
                    raise ActivationsError(
                        f"the saved state says that row {row} of a chunk was reached, and it has "
                        f"{len(chunk)}: it is not a state of these batches"
                    )
            stop = min(len(chunk), row + wanted - filled)
            into = {name: rows[filled : filled + stop - row] for name, rows in buffer.items()}
            chunk.copy(row, stop, into)
            filled, row = filled + stop - row, stop
            if row == len(chunk):
                chunk, row, number = None, 0, number + 1
        if not filled:
            return
        following = Place(number, row, place.window + 1)
        start = Place(place.chunk, place.row, place.window)
        yield Window(start, following, filled, dict(buffer), permuted(place.window, filled))
        place = following


def permutation(seed: Sequence[int], n_rows: int, device: torch.device) -> torch.Tensor:
    """Return a random order of so many rows, int64, on a device."""
    order = np.random.default_rng(list(seed)).permutation(n_rows)
    return torch.from_numpy(order).to(device)
