"""Windows of chunks' rows: every row once, within the buffer, and from any place on."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.live.windows import Place, mixed_windows, permutation, windows_in_order

FIRST = 3
BEGINNING = Place()


class Rows:
    """A chunk whose rows are numbers."""

    def __init__(self, first, n_rows):
        self.numbers = torch.arange(first, first + n_rows)

    def __len__(self):
        return len(self.numbers)

    def copy(self, start, stop, out):
        assert len(out["number"]) == stop - start
        out["number"].copy_(self.numbers[start:stop])


def chunks_of(counts, first=0):
    starts = np.cumsum([0, *counts]).tolist()
    chunks = [Rows(start, n_rows) for start, n_rows in zip(starts, counts, strict=False)]
    return iter(chunks[first:])


def empty(n_rows):
    return {"number": torch.empty(n_rows, dtype=torch.int64)}


def windows_of(counts, mix_rows, begin=BEGINNING):
    chunks = chunks_of(counts, begin.chunk)
    if mix_rows is None:
        return windows_in_order(chunks, begin, empty)
    return mixed_windows(
        chunks,
        begin,
        empty(mix_rows),
        FIRST,
        lambda window, n: permutation((7, window), n, torch.device("cpu")),
    )


def given_of(counts, mix_rows, begin=BEGINNING):
    """Return the numbers in the order they are given, and where it stands after each."""
    numbers, places = [], []
    for window in windows_of(counts, mix_rows, begin):
        for row in range(begin.given if not numbers and not places else 0, window.n_rows):
            numbers += window.take(row, row + 1)["number"].tolist()
            places.append(window.after(row + 1))
        begin = BEGINNING
    return numbers, places


@settings(max_examples=40)
@given(st.lists(st.integers(0, 7), max_size=5), st.one_of(st.none(), st.integers(3, 9)))
def test_every_row_comes_once_and_from_any_place_on(counts, mix_rows):
    numbers, places = given_of(counts, mix_rows)
    assert sorted(numbers) == list(range(sum(counts)))
    if mix_rows is None:
        assert numbers == sorted(numbers)
    for done, place in enumerate(places, start=1):
        assert Place.of(place.numbers()) == place
        rest, _ = given_of(counts, mix_rows, place)
        assert rest == numbers[done:]


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(3, 12))
def test_windows_double_up_to_the_buffer(counts, mix_rows):
    sizes = [window.n_rows for window in windows_of(counts, mix_rows)]
    whole = [min(FIRST << number, mix_rows) for number in range(len(sizes))]
    assert sizes[:-1] == whole[:-1]
    assert not sizes or 0 < sizes[-1] <= whole[-1]
