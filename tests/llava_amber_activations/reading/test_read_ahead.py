"""Reading ahead: in order, a little at first, then more at once, up to a bound."""

import gc
import threading
import time
import weakref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_amber_activations.reading import read_ahead
from llava_amber_activations.reading.read_ahead import RowGroup, Shards, read_in_order


class _OnHub(Shards):
    """Shards whose files need not exist."""

    def __init__(self):
        super().__init__(["hf://datasets/lab/acts@main/one.parquet"])

    def open(self, url):
        return url


class _Reading:
    """Reads a row group's number, and counts how many are read at the same time."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.now = self.most = self.begun = 0
        self._lock = threading.Lock()

    def __call__(self, file, number):
        with self._lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1
        return number


def _groups(n):
    return [RowGroup("hf://datasets/lab/acts@main/one.parquet", number, 64) for number in range(n)]


def test_eight_at_a_time_at_most():
    """Results stay in order whatever ends first."""
    reading = _Reading(0.05)
    assert list(read_in_order(_OnHub(), _groups(40), reading)) == list(range(40))
    assert reading.most == 8


def test_two_at_a_time_where_reading_is_work(monkeypatch):
    """From a Hub so near that nothing waits, more threads would wait for each other."""
    seen = []

    def mostly_waited(elapsed, worked):
        seen.append((elapsed, worked))
        return False

    monkeypatch.setattr(read_ahead, "_mostly_waited", mostly_waited)
    reading = _Reading(0.01)
    assert list(read_in_order(_OnHub(), _groups(20), reading)) == list(range(20))
    assert reading.most == 2
    assert len(seen) == 20 and all(elapsed >= 0.01 > worked >= 0 for elapsed, worked in seen)


def test_the_first_row_group_is_not_kept_waiting():
    reading = _Reading(0.05)
    found = read_in_order(_OnHub(), _groups(40), reading)
    assert next(found) == 0
    assert reading.begun == 2
    found.close()
    time.sleep(0.2)
    assert reading.begun <= 4


def test_what_goes_wrong_is_raised_in_its_turn():
    def read(file, number):
        if number == 3:
            raise ZeroDivisionError
        return number

    found = read_in_order(_OnHub(), _groups(9), read)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_a_packed_footer_is_the_footer(tmp_path, monkeypatch):
    """Kept of the Hub's files, each of which is asked for once."""
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"sample": [1, 2, 3]}), path, row_group_size=2)
    asked = []

    def footer(url):
        asked.append(url)
        return pq.read_metadata(path)

    monkeypatch.setattr(read_ahead, "_footer", footer)
    url = "hf://datasets/lab/packed@main/one.parquet"
    for _ in range(2):
        found = Shards([url]).footer(url)
        assert found.equals(pq.read_metadata(path))
        assert found.schema.to_arrow_schema() == pq.read_schema(path)
    assert asked == [url]


@pytest.mark.parametrize("most_open", [1, 4])
def test_footers_do_not_pile_up(tmp_path, monkeypatch, most_open):
    """Each takes a megabyte where a shard is of all layers; all of them were kept."""
    monkeypatch.setattr(read_ahead, "_MOST_FOOTERS", 8)
    paths = [tmp_path / f"{number:02d}.parquet" for number in range(80)]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"sample": [number]}), path)
    footers = weakref.WeakSet()

    def kept(url, footer=read_ahead._footer):
        found = footer(url)
        footers.add(found)
        return found

    monkeypatch.setattr(read_ahead, "_footer", kept)
    shards = Shards(list(map(str, paths)), most_open=most_open)
    tables = read_in_order(
        shards, shards.row_groups(), lambda shard, number: shard.parquet.read_row_group(number)
    )
    # What was there before need not be looked at.
    gc.freeze()
    samples = [table["sample"][0].as_py() for table in tables]
    gc.collect()
    gc.unfreeze()
    assert samples == list(range(80))
    # Beside the last eight, what at most eight threads have open.
    assert len(footers) <= 8 + 8 * most_open
    assert shards.footer(str(paths[0])).num_rows == 1
