"""Row groups and shards: every row once, samples whole wherever they fit."""

from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from builder.contents.spans import spans
from builder.shards.plan import most_group_rows, plan_row_groups, plan_shards

samples = st.lists(st.integers(0, 200), max_size=60)
widths = st.integers(1, 1 << 18)
row_sizes = st.integers(1, 100 << 20)


@given(samples, widths, row_sizes)
def test_row_groups(rows_of_samples, width, row_bytes):
    """Cover every row once, in order, within so many rows and 64 MiB unless one row is more."""
    most = most_group_rows(width, row_bytes)
    groups = plan_row_groups(rows_of_samples, width, row_bytes)
    assert [row for group in groups for row in group] == list(range(sum(rows_of_samples)))
    for group in groups:
        assert 1 <= len(group) <= most <= 512
        assert len(group) == 1 or len(group) * row_bytes <= 64 << 20


@given(samples, widths, row_sizes)
def test_a_sample_is_part_of_one_group_or_a_run_of_whole_ones(rows_of_samples, width, row_bytes):
    groups = plan_row_groups(rows_of_samples, width, row_bytes)
    start = 0
    for rows in rows_of_samples:
        own = range(start, start + rows)
        touched = [g for g in groups if g.start < own.stop and own.start < g.stop]
        if len(touched) > 1:
            assert touched[0].start == own.start and touched[-1].stop == own.stop
        start += rows


def test_row_groups_of_the_real_data():
    """1004 samples of one row: 16 groups; a sample of 600 rows: nine of 64 and one of 24."""
    assert [len(group) for group in plan_row_groups([1] * 1004, 4096, 64 * 8192)] == [64] * 15 + [
        44
    ]
    assert [len(group) for group in plan_row_groups([600], 4096, 17 * 8192)] == [64] * 9 + [24]
    # float32, all layers: 64 rows of 1 MiB are 64 MiB exactly.
    assert [len(group) for group in plan_row_groups([1] * 130, 4096, 64 * 16384)] == [64, 64, 2]


@given(st.integers(512, 1 << 18))
def test_low_and_high_bytes_fill_blocks_of_their_own(width):
    """Of a page's values there are two blocks of 128 KiB or more of each byte, but for one row."""
    rows = most_group_rows(width, 2 * width)
    assert rows <= 512
    assert rows <= 64 or (rows + 1) * width > 2 << 17
    if rows * 2 * width < (64 << 20) - 2 * width:
        left = rows * width % (1 << 17)
        assert left == 0 or left > (1 << 17) - width
        assert (rows + 1) * width > 2 << 17


def test_row_groups_of_models():
    """Widths of 4096 and 8192 as ever, and tiny ones; others are filled to a block's end."""
    widths = (576, 1024, 2048, 2560, 3584, 4096, 5120, 8192, 64, 8)
    most = [most_group_rows(width, 64 * 2 * width) for width in widths]
    assert most == [455, 256, 128, 102, 73, 64, 51, 64, 64, 64]
    # Samples of 79 rows: five of them are in a row group, where 64 and 15 were of each.
    assert [len(each) for each in plan_row_groups([79] * 10, 576, 34 * 1152)] == [395, 395]
    # A picture of 600 rows: full groups, and what is left.
    assert [len(each) for each in plan_row_groups([600], 3584, 17 * 7168)] == [73] * 8 + [16]


@given(samples, row_sizes, st.integers(1, 1 << 32))
def test_shards(rows_of_samples, row_bytes, max_bytes):
    """Keep the groups' order, and stay within the size unless one group is more."""
    groups = plan_row_groups(rows_of_samples, 4096, row_bytes)
    shards = plan_shards(groups, row_bytes, max_bytes)
    assert [group for shard in shards for group in shard] == groups
    for shard in shards:
        assert len(shard) == 1 or sum(map(len, shard)) * row_bytes <= max_bytes


@given(samples, row_sizes, st.integers(1, 1 << 32))
def test_shards_are_few_and_even(rows_of_samples, row_bytes, max_bytes):
    """No more than filling each to the brim gives; none much above its share."""
    groups = plan_row_groups(rows_of_samples, 4096, row_bytes)
    sizes = [len(group) * row_bytes for group in groups]
    n_shards, room = 0, 0
    for size in sizes:
        if n_shards == 0 or size > room:
            n_shards, room = n_shards + 1, max_bytes
        room -= size
    shards = plan_shards(groups, row_bytes, max_bytes)
    assert len(shards) == n_shards
    if shards:
        share = sum(sizes) / n_shards
        largest = max(sum(map(len, shard)) * row_bytes for shard in shards)
        assert largest <= share * (1 + 1 / 32) + max(sizes) + 2


def test_shards_of_the_real_data():
    """1004 rows of 512 kB: 16 row groups, and two shards of eight, not of fourteen and two."""
    groups = plan_row_groups([1] * 1004, 4096, 64 * 8192)
    assert [len(shard) for shard in plan_shards(groups, 64 * 8192, 500_000_000)] == [8, 8]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_spans(counts, data):
    """Each row comes once, in order, from the file that holds it, also past empty files."""
    starts = [0, *accumulate(counts)]
    where = [(file, row) for file, count in enumerate(counts) for row in range(count)]
    first = data.draw(st.integers(0, len(where)))
    last = data.draw(st.integers(first, len(where)))
    found = [
        (file, row)
        for file, start, stop in spans(starts, range(first, last))
        for row in range(start, stop)
    ]
    assert found == where[first:last]


def compressed_share(vectors, groups):
    """What zstd leaves of float16 in such row groups, the low bytes before the high ones."""
    codec = pa.Codec("zstd", compression_level=1)
    pages = (vectors[group.start : group.stop].view(np.uint8) for group in groups)
    sizes = [len(codec.compress(page.reshape(-1, 2).T.tobytes(), asbytes=True)) for page in pages]
    return sum(sizes) / vectors.nbytes


def test_narrow_vectors_compress_as_wide_ones_do():
    """Samples of 79 rows of 576: 0.87 of float16, where row groups of 64 and 15 took 0.93."""
    generator = np.random.default_rng(0)
    scales = np.exp(generator.normal(0, 0.5, 576))
    vectors = (generator.standard_normal((790, 576)) * scales).astype(np.float16)
    groups = plan_row_groups([79] * 10, 576, 2 * 576)
    assert compressed_share(vectors, groups) <= 0.88
    cuts = [start for sample in range(0, 790, 79) for start in (sample, sample + 64)]
    before = [range(*each) for each in pairwise([*cuts, 790])]
    assert compressed_share(vectors, before) > 0.92
