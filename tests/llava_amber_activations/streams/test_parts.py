"""Whose the rows are: counted over every rank and worker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_amber_activations import ActivationsError
from llava_amber_activations.streams.parts import Part, cut


@given(
    st.integers(0, 500),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_parts_cover_the_rows(n_rows, batch_size, world_size, n_workers, drop_last, in_turn):
    """Every row once; as many batches on every rank, none of them empty or too large."""
    if 0 < n_rows < world_size and not drop_last:
        with pytest.raises(ActivationsError, match="cannot be shared"):
            Part(0, world_size).batches(n_rows, batch_size, drop_last=drop_last)
        return
    ranks = [
        [
            Part(rank, world_size, worker, n_workers).batches(
                n_rows, batch_size, drop_last=drop_last, in_turn=in_turn
            )
            for worker in range(n_workers)
        ]
        for rank in range(world_size)
    ]
    found = sorted(row for rank in ranks for worker in rank for batch in worker for row in batch)
    dropped = n_rows % (batch_size * world_size) if drop_last else 0
    assert found == list(range(n_rows - dropped))
    if not in_turn:
        for number, batches in enumerate(worker for rank in ranks for worker in rank):
            part = Part(number // n_workers, world_size, number % n_workers, n_workers)
            mine = part.rows(n_rows, batch_size, drop_last=drop_last)
            assert list(mine) == [row for batch in batches for row in batch]
    sizes = [[len(batch) for worker in rank for batch in worker] for rank in ranks]
    assert len({len(each) for each in sizes}) == 1
    # Batches of one row cannot be shared: a rank that has a row more has two in its last one.
    most = 2 if batch_size == 1 and n_rows % world_size and not drop_last else batch_size
    assert all(0 < size <= most for each in sizes for size in each)
    totals = [sum(each) for each in sizes]
    assert max(totals) - min(totals) <= 1
    # Full ones but for the last two.
    assert all(sum(size != batch_size for size in each) <= 2 for each in sizes)
    counts = [len(worker) for rank in ranks for worker in rank]
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 500), st.integers(1, 70), st.integers(1, 4))
def test_workers_that_are_asked_in_turn_keep_the_order(n_rows, batch_size, n_workers):
    whole = Part().batches(n_rows, batch_size, drop_last=False)
    of_workers = [
        Part(0, 1, worker, n_workers).batches(n_rows, batch_size, drop_last=False, in_turn=True)
        for worker in range(n_workers)
    ]
    asked = [of_workers[number % n_workers][number // n_workers] for number in range(len(whole))]
    assert asked == whole


@given(st.lists(st.integers(0, 9), max_size=8), st.data())
def test_pieces_of_runs(counts, data):
    start = data.draw(st.integers(0, sum(counts)))
    stop = data.draw(st.integers(start, sum(counts)))
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    pieces = cut(counts, range(start, stop))
    found = [firsts[number] + row for number, wanted in pieces for row in wanted]
    assert found == list(range(start, stop))
