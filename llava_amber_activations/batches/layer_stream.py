"""A layer's rows as they come from its shards: in order or mixed, from any row on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from llava_amber_activations.batches.parts import Part, check_skip, cut
from llava_amber_activations.reading.layer_rows import read_layer_places
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order
from llava_amber_activations.reading.wanted_layer import WantedLayer, layer_shards, wanted_layer
from llava_amber_activations.sources.footers import NOTHING_EXPECTED, Expected
from llava_amber_activations.sources.shard_file import ShardFile
from llava_amber_activations.sources.source import Source, expected_of, open_source
from llava_amber_activations.vectors.gather import RowNumbers, RowPlaces, join_places
from llava_amber_activations.vectors.recycled import RecycledMemory

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class LayerStream:
    """Which shards, and what of them. Can be sent to worker processes.

    Attributes:
        urls: addresses of the shards, in order.
        view: the layer and its targets.
        expected: what the manifest says of the shards.
        digest: of the shards' checksums: whatever has the same holds the same rows.
    """

    urls: tuple[str, ...]
    view: WantedLayer
    expected: Expected = NOTHING_EXPECTED
    digest: str = ""

    def blocks(
        self, part: Part, skip: int, *, batch_size: int, drop_last: bool
    ) -> Iterator[tuple[RowPlaces, RowNumbers]]:
        """Yield a part's rows in the order of the shards, from its row `skip` on.

        Each block is some rows, and which of them are wanted. A part's rows are one run of whole
        batches, as `Part.rows` cuts them.

        Raises:
            ActivationsError: the part has fewer rows than `skip`, or a shard is damaged.
        """
        shards = Shards(self.urls, self.expected)
        if skip == 0 and part.n_parts == 1:
            for places in self._read(shards, shards.row_groups()):
                yield places, np.arange(len(places))
            return
        pieces = _cut(list(shards.row_groups()), part, batch_size, drop_last)
        first, into = _find_row([len(rows) for _, rows in pieces], skip)
        wanted = pieces[first:]
        blocks = self._read(shards, [group for group, _ in wanted])
        for (_, rows), places in zip(wanted, blocks, strict=True):
            yield places, np.array(rows[into:])
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
    ) -> Iterator[tuple[RowPlaces, RowNumbers]]:
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
        groups = list(shards.row_groups())
        order = np.random.default_rng(seed).permutation(len(groups))
        mine = _cut([groups[number] for number in order], part, batch_size, drop_last)
        windows = _windows(mine, first_rows, window_rows)
        first, into = _find_row([sum(len(rows) for _, rows in w) for w in windows], skip)
        wanted = windows[first:]
        blocks = self._read(shards, [group for window in wanted for group, _ in window])
        for number, window in enumerate(wanted, start=first):
            read = [next(blocks) for _ in window]
            places = join_places(read)
            starts = np.cumsum([0, *(len(each) for each in read)])
            rows = np.concatenate(
                [start + np.array(rows) for start, (_, rows) in zip(starts, window, strict=False)]
            )
            mixed = np.random.default_rng([*seed, part.number, number]).permutation(rows)
            yield places, mixed[into:]
            into = 0

    def _read(self, shards: Shards, groups: Iterable[RowGroup]) -> Iterator[RowPlaces]:
        memory = RecycledMemory()

        def read(file: ShardFile, number: int) -> RowPlaces:
            return read_layer_places(file, number, self.view, memory)

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
    view = wanted_layer(opened, layer, n_targets, first_target)
    return layer_stream(opened, view)


def layer_stream(source: Source, view: WantedLayer) -> LayerStream:
    """Return the stream of a layer's shards.

    Raises:
        ActivationsError: as `layer_shards`.
    """
    paths = layer_shards(source, view)
    urls = tuple(source.url(path) for path in paths)
    checksums = [source.manifest.files[path].sha256 for path in paths]
    return LayerStream(urls, view, expected_of(source, paths), digest_of(checksums))


def digest_of(checksums: Sequence[str]) -> str:
    """Name the contents of some files together, by their checksums."""
    return hashlib.sha256(json.dumps(list(checksums)).encode()).hexdigest()[:16]


# A row group, and which of its rows.
_Piece = tuple[RowGroup, range]


def _cut(groups: Sequence[RowGroup], part: Part, batch_size: int, drop_last: bool) -> list[_Piece]:
    """Return a part's run of the rows of some row groups, in their order."""
    counts = [group.n_rows for group in groups]
    rows = part.rows(sum(counts), batch_size, drop_last=drop_last)
    return [(groups[number], wanted) for number, wanted in cut(counts, rows)]


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


# A stream that `datasets` has derived from another one is not in here: what was done to it cannot
# be seen from outside, so its rows are taken from `datasets` itself.
_STREAMS: WeakKeyDictionary[datasets.IterableDataset, LayerStream] = WeakKeyDictionary()


def remember_stream(dataset: datasets.IterableDataset, stream: LayerStream) -> None:
    """Remember which shards a streaming dataset reads."""
    _STREAMS[dataset] = stream


def stream_of(dataset: datasets.IterableDataset) -> LayerStream | None:
    """Return which shards a streaming dataset reads, if `load_activations` made it as it is."""
    return _STREAMS.get(dataset)
