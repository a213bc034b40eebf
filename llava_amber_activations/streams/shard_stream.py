"""Rows as they come from shards: in order or mixed, from any row on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.sources.footers import NOTHING_EXPECTED, Expected
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.streams.parts import Part, check_skip, cut
from llava_amber_activations.streams.row_choice import ChosenRows, RowChoice
from llava_amber_activations.vectors.held_rows import HeldRows, RowNumbers, join_rows
from llava_amber_activations.vectors.recycled import RecycledMemory

# Rows that are mixed with one another when a stream is shuffled.
_WINDOW_ROWS = 4096
# The first rows come the sooner the fewer they are mixed with.
_FIRST_WINDOW_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class ShardStream(ABC):
    """Which shards, and which of their rows. Can be sent to worker processes.

    Attributes:
        urls: addresses of the shards, in order.
        expected: what the manifest says of the shards.
        digest: of the shards' checksums: whatever has the same holds the same rows.
        row_groups: of each shard, which of its row groups; None for all of them.
        first_row, stop_row: which of those rows; all from the first on where `stop_row` is None.
        choice: what the wanted rows have in common; None where all are wanted.
        chosen: the rows that have it, found before; None where all are wanted.
    """

    urls: tuple[str, ...]
    expected: Expected = NOTHING_EXPECTED
    digest: str = ""
    row_groups: tuple[Sequence[int] | None, ...] | None = None
    first_row: int = 0
    stop_row: int | None = None
    choice: RowChoice | None = None
    chosen: tuple[ChosenRows, ...] | None = None

    @abstractmethod
    def read(self, file: ShardFile, group: int, memory: RecycledMemory) -> HeldRows:
        """Read one row group: what of it is wanted."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Say what is read of the rows: what a saved state must have in common with it."""

    def window_rows(self, batch_size: int) -> int:
        """Return how many rows are mixed with one another: two batches at least.

        Or a batch would be a run of row groups.
        """
        return max(_WINDOW_ROWS, 2 * batch_size)

    @property
    def n_rows(self) -> int | None:
        """How many rows there are; None where that is not known before footers are read."""
        if self.chosen is not None:
            return sum(len(each.rows) for each in self.chosen)
        counts = [self._rows_of(url, groups) for url, groups in self._shards()]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        stop = sum(known) if self.stop_row is None else min(self.stop_row, sum(known))
        return max(stop - self.first_row, 0)

    def counted_rows(self) -> int:
        """Return how many rows there are, by the footers where nothing else says it."""
        known = self.n_rows
        if known is not None:
            return known
        return sum(len(rows) for _, rows in self.pieces(self.open_shards()))

    def identity(self) -> dict[str, Any]:
        """Say which rows these are: what a saved state must have in common with them."""
        about = {"dataset": self.digest, **self.about()}
        if self.first_row or self.stop_row is not None:
            about["rows"] = f"{self.first_row}-{self.stop_row}"
        if self.choice is not None:
            about["where"] = str(self.choice)
        return about

    def blocks(
        self, part: Part, skip: int, *, batch_size: int, drop_last: bool
    ) -> Iterator[tuple[HeldRows, RowNumbers]]:
        """Yield a part's rows in the order of the shards, from its row `skip` on.

        Each block is some rows, and which of them are wanted. A part's rows are one run, that of
        `Part.batches`.

        Raises:
            ActivationsError: the part has fewer rows than `skip`, or a shard is damaged.
        """
        shards = self.open_shards()
        pieces: Iterable[Piece] = self.pieces(shards)
        into = 0
        if skip or part.n_parts > 1:
            mine = _cut(list(pieces), part, batch_size, drop_last)
            first, into = _find_row([len(rows) for _, rows in mine], skip)
            pieces = mine[first:]
        wanted: deque[Rows] = deque()

        def groups() -> Iterator[RowGroup]:
            for group, rows in pieces:
                wanted.append(rows)
                yield group

        for held in self._read(shards, groups()):
            yield held, np.array(wanted.popleft()[into:])
            into = 0

    def mixed_blocks(
        self, part: Part, skip: int, seed: Sequence[int], *, batch_size: int, drop_last: bool
    ) -> Iterator[tuple[HeldRows, RowNumbers]]:
        """Yield a part's rows mixed, from its row `skip` on of the order that `seed` gives.

        All row groups are put into random order, and each part has a run of them, which begins and
        ends at whole batches; it joins them into windows and mixes the rows of each. The first
        window is small, so that its rows come soon; the next are twice as large each, up to
        `window_rows`.
        So any row may stand next to any other, only one window is held, and what follows a row
        can be had without reading what came before its window.

        Raises:
            ActivationsError: as `blocks`.
        """
        shards = self.open_shards()
        pieces = list(self.pieces(shards))
        order = np.random.default_rng(seed).permutation(len(pieces))
        mine = _cut([pieces[number] for number in order], part, batch_size, drop_last)
        first_rows = max(_FIRST_WINDOW_ROWS, batch_size)
        windows = _windows(mine, first_rows, self.window_rows(batch_size))
        first, into = _find_row([sum(len(rows) for _, rows in w) for w in windows], skip)
        wanted = windows[first:]
        blocks = self._read(shards, [group for window in wanted for group, _ in window])
        for number, window in enumerate(wanted, start=first):
            read = [next(blocks) for _ in window]
            starts = np.cumsum([0, *(len(each) for each in read)])
            rows = np.concatenate(
                [start + np.array(rows) for start, (_, rows) in zip(starts, window, strict=False)]
            )
            mixed = np.random.default_rng([*seed, part.number, number]).permutation(rows)
            yield join_rows(read), mixed[into:]
            into = 0

    def open_shards(self) -> Shards:
        """Return the shards, whose footers are read when they are needed."""
        return Shards(self.urls, self.expected)

    def pieces(self, shards: Shards) -> Iterator[Piece]:
        """Yield the row groups that hold the rows.

        A footer is read when its turn comes, and only where the manifest names no row groups.
        """
        if self.chosen is not None:
            for each in self.chosen:
                yield shards.row_group(each.url, each.group), each.rows
            return
        row, stop = 0, self.stop_row
        for url, groups in self._shards():
            if stop is not None and row >= stop:
                return
            known = self._rows_of(url, groups)
            if known is not None and row + known <= self.first_row:
                row += known
                continue
            every = range(len(shards.group_rows(url)))
            for number in every if groups is None else groups:
                group = shards.row_group(url, number)
                last = group.n_rows if stop is None else min(stop - row, group.n_rows)
                rows = range(max(self.first_row - row, 0), last)
                row += group.n_rows
                if rows:
                    yield group, rows

    def _shards(self) -> Iterable[tuple[str, Sequence[int] | None]]:
        return zip(self.urls, self.row_groups or [None] * len(self.urls), strict=True)

    def _rows_of(self, url: str, row_groups: Sequence[int] | None) -> int | None:
        if row_groups is None:
            return self.expected.rows.get(url)
        counts = self.expected.row_groups.get(url)
        return None if counts is None else sum(counts[number] for number in row_groups)

    def _read(self, shards: Shards, groups: Iterable[RowGroup]) -> Iterator[HeldRows]:
        memory = RecycledMemory()
        return read_in_order(shards, groups, lambda file, number: self.read(file, number, memory))


def digest_of(checksums: Sequence[str]) -> str:
    """Name the contents of some files together, by their checksums."""
    return hashlib.sha256(json.dumps(list(checksums)).encode()).hexdigest()[:16]


# Which rows of a row group; and a row group with its rows.
Rows = range | RowNumbers
Piece = tuple[RowGroup, Rows]


def _cut(pieces: Sequence[Piece], part: Part, batch_size: int, drop_last: bool) -> list[Piece]:
    """Return a part's run of the rows of some pieces, in their order."""
    counts = [len(rows) for _, rows in pieces]
    mine = part.rows(sum(counts), batch_size, drop_last=drop_last)
    return [
        (pieces[number][0], pieces[number][1][among.start : among.stop])
        for number, among in cut(counts, mine)
    ]


def _windows(pieces: Sequence[Piece], first_rows: int, window_rows: int) -> list[list[Piece]]:
    windows: list[list[Piece]] = []
    filled = wanted = 0
    for piece in pieces:
        if filled >= wanted:
            wanted = min(first_rows << len(windows), window_rows)
            windows.append([])
            filled = 0
        windows[-1].append(piece)
        filled += len(piece[1])
    return windows


def _find_row(counts: Sequence[int], skip: int) -> tuple[int, int]:
    """Return which of several runs of rows holds the row, and where in it.

    Raises:
        ActivationsError: they are not so many rows.
    """
    check_skip(skip, sum(counts))
    row = skip
    for number, count in enumerate(counts):
        if row < count:
            return number, row
        row -= count
    return len(counts), 0
