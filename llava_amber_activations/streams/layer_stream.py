"""A layer's rows as they come from its shards: in order or mixed, from any row on."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_amber_activations.reading.layer_rows import read_layer_rows
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.reading.wanted_layer import WantedLayer, layer_shards, wanted_layer
from llava_amber_activations.sources.footers import NOTHING_EXPECTED, Expected
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import expected_of, open_source
from llava_amber_activations.streams.parts import Part, check_skip, cut
from llava_amber_activations.vectors.held_rows import HeldRows, RowNumbers, join_rows
from llava_amber_activations.vectors.recycled import RecycledMemory


@dataclass(frozen=True)
class LayerStream:
    """Which shards, and what of them. Can be sent to worker processes.

    Attributes:
        urls: addresses of the shards, in order.
        wanted: the layer and its targets.
        expected: what the manifest says of the shards.
        digest: of the shards' checksums: whatever has the same holds the same rows.
        row_groups: of each shard, which of its row groups; None for all of them.
        first_row, stop_row: which of those rows; all from the first on where `stop_row` is None.
    """

    urls: tuple[str, ...]
    wanted: WantedLayer
    expected: Expected = NOTHING_EXPECTED
    digest: str = ""
    row_groups: tuple[Sequence[int] | None, ...] | None = None
    first_row: int = 0
    stop_row: int | None = None

    @property
    def n_rows(self) -> int | None:
        """How many rows there are; None where that is not known before footers are read."""
        counts = [self._rows_of(url, groups) for url, groups in self._shards()]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        stop = sum(known) if self.stop_row is None else min(self.stop_row, sum(known))
        return max(stop - self.first_row, 0)

    def identity(self) -> dict[str, Any]:
        """Say which rows these are: what a saved state must have in common with them."""
        of_layer = {
            "dataset": self.digest,
            "layer": self.wanted.layer,
            "n_targets": self.wanted.n_targets,
            "first_target": self.wanted.first_target,
        }
        if self.first_row == 0 and self.stop_row is None:
            return of_layer
        return {**of_layer, "rows": f"{self.first_row}-{self.stop_row}"}

    def blocks(
        self, part: Part, skip: int, *, batch_size: int, drop_last: bool
    ) -> Iterator[tuple[HeldRows, RowNumbers]]:
        """Yield a part's rows in the order of the shards, from its row `skip` on.

        Each block is some rows, and which of them are wanted. A part's rows are one run of whole
        batches, as `Part.rows` cuts them.

        Raises:
            ActivationsError: the part has fewer rows than `skip`, or a shard is damaged.
        """
        shards = Shards(self.urls, self.expected)
        pieces: Iterable[_Piece] = self._pieces(shards)
        into = 0
        if skip or part.n_parts > 1:
            mine = _cut(list(pieces), part, batch_size, drop_last)
            first, into = _find_row([len(rows) for _, rows in mine], skip)
            pieces = mine[first:]
        wanted: deque[range] = deque()

        def groups() -> Iterator[RowGroup]:
            for group, rows in pieces:
                wanted.append(rows)
                yield group

        for held in self._read(shards, groups()):
            yield held, np.array(wanted.popleft()[into:])
            into = 0

    def mixed_blocks(
        self,
        part: Part,
        skip: int,
        seed: Sequence[int],
        first_rows: int,
        window_rows: int,
        *,
        batch_size: int,
        drop_last: bool,
    ) -> Iterator[tuple[HeldRows, RowNumbers]]:
        """Yield a part's rows mixed, from its row `skip` on of the order that `seed` gives.

        All row groups are put into random order, and each part has a run of them, which begins and
        ends at whole batches; it joins them into windows and mixes the rows of each. The first
        window is as small as `first_rows`, so that its rows come soon; the next are twice as large
        each, up to `window_rows`.
        So any row may stand next to any other, only one window is held, and what follows a row
        can be had without reading what came before its window.

        Raises:
            ActivationsError: as `blocks`.
        """
        shards = Shards(self.urls, self.expected)
        pieces = list(self._pieces(shards))
        order = np.random.default_rng(seed).permutation(len(pieces))
        mine = _cut([pieces[number] for number in order], part, batch_size, drop_last)
        windows = _windows(mine, first_rows, window_rows)
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

    def _pieces(self, shards: Shards) -> Iterator[_Piece]:
        """Yield the row groups that hold the rows; a footer is read when its turn comes."""
        row, stop = 0, self.stop_row
        for url, chosen in self._shards():
            if stop is not None and row >= stop:
                return
            known = self._rows_of(url, chosen)
            if known is not None and row + known <= self.first_row:
                row += known
                continue
            every = range(shards.footer(url).num_row_groups)
            for number in every if chosen is None else chosen:
                group = shards.row_group(url, number)
                last = group.n_rows if stop is None else min(stop - row, group.n_rows)
                rows = range(max(self.first_row - row, 0), last)
                row += group.n_rows
                if rows:
                    yield group, rows

    def _shards(self) -> Iterable[tuple[str, Sequence[int] | None]]:
        return zip(self.urls, self.row_groups or [None] * len(self.urls), strict=True)

    def _rows_of(self, url: str, row_groups: Sequence[int] | None) -> int | None:
        return self.expected.rows.get(url) if row_groups is None else None

    def _read(self, shards: Shards, groups: Iterable[RowGroup]) -> Iterator[HeldRows]:
        memory = RecycledMemory()

        def read(file: ShardFile, number: int) -> HeldRows:
            return read_layer_rows(file, number, self.wanted, memory)

        return read_in_order(shards, groups, read)


def open_layer(
    source: str | Path,
    layer: int,
    n_targets: int | None = None,
    *,
    first_target: int = 1,
    revision: str | None = None,
) -> LayerStream:
    """Open one layer for `activation_batches`, whose first batch then comes at once.

    Nothing is prepared or cached, and `datasets` is not imported: rows are decoded from the
    shards as they are asked for, here or from the Hub.

    Args:
        source: a dataset folder, or a dataset's id on the Hub.
        layer: L, 0-based.
        n_targets: how many of the MLP outputs after `x`; as many as the dataset was made with
            where it is None.
        first_target: 1 starts the targets at L+1 (this project's convention), 0 at L itself.
        revision: branch, tag or commit on the Hub.

    Raises:
        ActivationsError: the source is not a dataset of activations, or does not hold the layer or
            as many targets.
    """
    opened = open_source(source, revision)
    wanted = wanted_layer(opened, layer, n_targets, first_target)
    paths = layer_shards(opened, wanted)
    urls = tuple(opened.url(path) for path in paths)
    checksums = [opened.manifest.files[path].sha256 for path in paths]
    return LayerStream(urls, wanted, expected_of(opened, paths), digest_of(checksums))


def digest_of(checksums: Sequence[str]) -> str:
    """Name the contents of some files together, by their checksums."""
    return hashlib.sha256(json.dumps(list(checksums)).encode()).hexdigest()[:16]


# A row group, and which of its rows.
_Piece = tuple[RowGroup, range]


def _cut(pieces: Sequence[_Piece], part: Part, batch_size: int, drop_last: bool) -> list[_Piece]:
    """Return a part's run of the rows of some pieces, in their order."""
    counts = [len(rows) for _, rows in pieces]
    mine = part.rows(sum(counts), batch_size, drop_last=drop_last)
    return [
        (pieces[number][0], pieces[number][1][among.start : among.stop])
        for number, among in cut(counts, mine)
    ]


def _windows(pieces: Sequence[_Piece], first_rows: int, window_rows: int) -> list[list[_Piece]]:
    windows: list[list[_Piece]] = []
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
