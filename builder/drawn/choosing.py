"""Which rows of a dataset to draw: where its samples begin and end, and which fit a budget.

The footers of shards say which samples each row group is of, so that nothing else is read for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_amber_activations.formats.arrow_vectors import numbers_in
from llava_amber_activations.formats.columns import SAMPLE
from llava_amber_activations.reading.layer_rows import read_columns
from llava_amber_activations.reading.read_ahead import Shards
from llava_amber_activations.sources.source import Source, expected_of

# Of a large dataset, so many shards' footers are read, evenly apart.
_MOST_SHARDS = 16

# With fewer samples than this, layers are left out before samples are.
FEW_SAMPLES = 8
_LEAST_LAYERS = 5


@dataclass(frozen=True)
class Block:
    """Row groups that follow one another and hold samples whole.

    Attributes:
        rows: of the dataset, counted over all shards.
        n_samples: at most so many samples; some of them may have been skipped.
    """

    rows: range
    n_samples: int


@dataclass(frozen=True)
class _Group:
    """A row group: its rows, counted over all shards, and the first and the last of its samples."""

    rows: range
    first: int
    last: int


def shard_rows(source: Source, paths: Sequence[str]) -> list[range]:
    """Return the rows of each shard, counted over all of them, by the manifest."""
    counts = [source.manifest.files[path].rows or 0 for path in paths]
    stops = np.cumsum(counts).tolist()
    return [range(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]


def find_blocks(source: Source, paths: Sequence[str]) -> list[Block]:
    """Return where the samples of a config's shards are, of a large dataset in some of the shards.

    Raises:
        ActivationsError: a shard is missing or damaged.
    """
    n_looked = min(len(paths), _MOST_SHARDS)
    chosen = sorted({round(n) for n in np.linspace(0, len(paths) - 1, n_looked)})
    # In shards smaller than a sample none may be whole.
    return _blocks_in(source, paths, chosen) or _blocks_in(source, paths, range(len(paths)))


def _blocks_in(source: Source, paths: Sequence[str], chosen: Iterable[int]) -> list[Block]:
    shards = Shards([source.url(path) for path in paths], expected_of(source, paths))
    places = shard_rows(source, paths)
    groups: list[_Group] = []
    for number in chosen:
        groups += _groups_of(shards, source.url(paths[number]), places[number].start)
    runs: list[list[_Group]] = []
    for group in groups:
        before = runs[-1][-1] if runs else None
        if before and before.rows.stop == group.rows.start and before.last == group.first:
            runs[-1].append(group)
        else:
            runs.append([group])
    # What begins before a shard that was looked at, or goes on after it, is not known to be whole.
    starts = {0, *(group.rows.stop for group in groups)}
    stops = {places[-1].stop, *(group.rows.start for group in groups)}
    return [
        Block(range(run[0].rows.start, run[-1].rows.stop), run[-1].last - run[0].first + 1)
        for run in runs
        if run[0].rows.start in starts and run[-1].rows.stop in stops
    ]


def _groups_of(shards: Shards, url: str, start: int) -> list[_Group]:
    groups = []
    for number, n_rows in enumerate(shards.group_rows(url)):
        if n_rows:
            first, last = samples_of_group(shards, url, number)
            groups.append(_Group(range(start, start + n_rows), first, last))
        start += n_rows
    return groups


def samples_of_group(shards: Shards, url: str, number: int) -> tuple[int, int]:
    """Return the first and the last sample of a row group that has rows, by its footer if it says.

    Raises:
        ActivationsError: the shard cannot be read.
    """
    footer = shards.footer(url)
    column = footer.row_group(number).column(footer.schema.names.index(SAMPLE))
    statistics = column.statistics
    if statistics is not None and statistics.has_min_max:
        return int(statistics.min), int(statistics.max)
    samples = numbers_in(read_columns(shards.open(url), number, [SAMPLE])[SAMPLE])
    return int(samples.min()), int(samples.max())


def choose_layers(
    layers: Sequence[int], blocks: Sequence[Block], layer_bytes: int, max_bytes: int
) -> list[int]:
    """Return all layers, or some of them, evenly apart, where few samples of all fit a budget.

    Args:
        layers: that there are, ascending.
        blocks: to draw from, at least one.
        layer_bytes: of one row of one layer.
        max_bytes: the budget.
    """
    n_rows = sum(len(block.rows) for block in blocks)
    n_samples = sum(block.n_samples for block in blocks)
    few = min(FEW_SAMPLES, n_samples)
    few_bytes = layer_bytes * -(-few * n_rows // n_samples)
    most = max(_LEAST_LAYERS, max_bytes // max(1, few_bytes))
    if most >= len(layers):
        return list(layers)
    return [layers[round(n)] for n in np.linspace(0, len(layers) - 1, most)]


def choose_blocks(
    blocks: Sequence[Block], row_bytes: int, max_bytes: int, seed: int
) -> list[Block]:
    """Return blocks that fit a budget together, in order: all, or as a seed draws them.

    There is always one, though it may be larger than the budget.
    """
    chosen: list[int] = []
    left = max_bytes
    for number in np.random.default_rng(seed).permutation(len(blocks)).tolist():
        n_bytes = len(blocks[number].rows) * row_bytes
        if n_bytes <= left or not chosen:
            chosen.append(number)
            left -= n_bytes
    return [blocks[number] for number in sorted(chosen)]
