"""Where row groups and shards begin and end: pure arithmetic on row counts."""

from __future__ import annotations

from collections.abc import Sequence

from llava_amber_activations.console.sizes import parse_size
from llava_amber_activations.errors import ActivationsError

MAX_GROUP_BYTES = 64 << 20
# zstd makes a code of its own for each block of 128 KiB (RFC 8878, 3.1.1.2.4). A byte-stream-split
# page begins with the low bytes of all values, which are noise, and goes on with the high ones: a
# block of both compresses badly. So each kind fills whole blocks. Measured, of float16 as it is in
# memory: 0.86, and 0.93 where both are in one block.
_ZSTD_BLOCK_BYTES = 128 << 10
_LEAST_BLOCKS = 2
_USUAL_GROUP_ROWS = 64
_MOST_GROUP_ROWS = 512
_LEAST_SHARD_BYTES = 1000


def most_group_rows(width: int, row_bytes: int) -> int:
    """Return how many rows a row group has at most: about 64, more where vectors are narrow.

    Args:
        width: length of a vector; none in practice is so short that 512 rows fill no two blocks.
        row_bytes: uncompressed bytes of a row.
    """
    n_blocks = max(_LEAST_BLOCKS, _USUAL_GROUP_ROWS * width // _ZSTD_BLOCK_BYTES)
    rows = n_blocks * _ZSTD_BLOCK_BYTES // width
    if rows > _MOST_GROUP_ROWS:
        rows = _USUAL_GROUP_ROWS
    return max(1, min(rows, MAX_GROUP_BYTES // row_bytes))


def plan_row_groups(rows_of_samples: Sequence[int], width: int, row_bytes: int) -> list[range]:
    """Cut the rows of consecutive samples into row groups.

    Whole samples share a row group as long as they fit; a sample that does not fit one begins its
    own and is cut into a run of them. So a sample is always part of one row group, or a run of
    whole ones.

    Args:
        rows_of_samples: rows of each sample, in order; zeros are samples that were skipped.
        width: length of a vector.
        row_bytes: uncompressed bytes of a row.

    Returns:
        Ranges of rows, each of at most `most_group_rows` and, unless a single row is larger,
        64 MiB.
    """
    most = most_group_rows(width, row_bytes)
    groups: list[range] = []
    start = stop = 0
    for rows in rows_of_samples:
        if stop - start + rows > most and stop > start:
            groups.append(range(start, stop))
            start = stop
        stop += rows
        while stop - start > most:
            groups.append(range(start, start + most))
            start += most
        if rows > most and stop > start:
            groups.append(range(start, stop))
            start = stop
    if stop > start:
        groups.append(range(start, stop))
    return groups


def plan_shards(groups: Sequence[range], row_bytes: int, max_shard_bytes: int) -> list[list[range]]:
    """Deal row groups out, in order, to as few shards of at most `max_shard_bytes` as can be.

    Bytes are those before compression. A shard holds at least one row group, and all are of about
    the same size, so that those who write or read them at once are done at once.
    """
    n_shards = len(_filled(groups, row_bytes, max_shard_bytes))
    total = sum(map(len, groups)) * row_bytes
    # Row groups cannot be cut: an even share may need a little more to end up in as many shards.
    share = -(-total // max(n_shards, 1))
    step = max(1, share // 64)
    while len(shards := _filled(groups, row_bytes, min(share, max_shard_bytes))) > n_shards:
        share += step
    return shards


def _filled(groups: Sequence[range], row_bytes: int, shard_bytes: int) -> list[list[range]]:
    """Fill shard after shard."""
    shards: list[list[range]] = []
    filled = 0
    for group in groups:
        size = len(group) * row_bytes
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += size
    return shards


def parse_shard_size(text: str) -> int:
    """Parse the most bytes of a shard, such as `500MB`.

    Raises:
        ActivationsError: the text is no size, or one that no row fits.
    """
    size = parse_size(text)
    if size < _LEAST_SHARD_BYTES:
        raise ActivationsError(
            f"a shard of at most {size} bytes ('{text}') would hold nothing: give the size with "
            "its unit, such as 500MB"
        )
    return size
