"""Row groups read in order, several at once and ahead of whoever consumes them."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import pyarrow.parquet as pq

from llava_amber_activations.sources.footers import (
    NOTHING_EXPECTED,
    Expected,
    check_footer,
    reading_errors,
    rows_of_groups,
)
from llava_amber_activations.sources.shard_file import (
    ShardFile,
    is_remote,
    open_parquet,
    source_errors,
)

# Row groups that are read at once: at first, and at most. The Hub answers a request in about a
# tenth of a second, and a layer's columns of a row group are about 10 MB: eight requests at once
# fill a fast line. Where the line is so fast that a read is mostly work, more threads than cores
# wait for each other: eight took 1.3 times as long as two (2 cores, a Hub on loopback). Here every
# core decodes; and when the first row group is there, one more waits for whichever core is done.
_AT_ONCE_ON_HUB = (2, 8)
_AT_ONCE_HERE = (min(7, os.cpu_count() or 1), min(8, 1 + (os.cpu_count() or 1)))

# Shards that a thread keeps open; in random order it comes back to them.
_MOST_OPEN = 8

# Footers that are kept parsed, where shards come in random order. That of a shard of all layers of
# a model of 32 takes 1.2 MB, 2 ms to parse, and 12 kB packed: those of the Hub, which cost a
# request, are kept packed besides.
_MOST_FOOTERS = 128
_MOST_PACKED = 4096

# How many times as long as it worked.
_WAITED_LONG = 4

_T = TypeVar("_T")


@dataclass(frozen=True)
class RowGroup:
    """One row group of a shard: its file's address, its number there, its rows."""

    url: str
    number: int
    n_rows: int


def _footer(url: str) -> pq.FileMetaData:
    with open_parquet(url) as file:
        return file.metadata


@lru_cache(maxsize=_MOST_PACKED)
def _packed_footer_on_hub(url: str) -> bytes:
    footer = io.BytesIO()
    _footer(url).write_metadata_file(footer)
    return zlib.compress(footer.getvalue(), level=1)


def _footer_on_hub(url: str) -> pq.FileMetaData:
    return pq.read_metadata(io.BytesIO(zlib.decompress(_packed_footer_on_hub(url))))


class Shards:
    """Parquet files of one split, each footer held against the manifest; the last few are kept.

    Where the manifest names the row groups, a footer is read when rows are, and not before.
    Several threads may ask for footers.

    Args:
        checked: compare the pages' checksums as they are read, which takes a quarter as long as
            decoding them: for what is read once, and kept.
        most_open: shards that a thread keeps open, with what it has read of them in memory. Where
            it is one, shards are read in order, and fewer footers are kept.
    """

    def __init__(
        self,
        urls: Iterable[str],
        expected: Expected = NOTHING_EXPECTED,
        *,
        checked: bool = False,
        most_open: int = _MOST_OPEN,
    ) -> None:
        self._urls = list(urls)
        self._checked = checked
        self._most_open = most_open
        # In order, none is come back to.
        self._most_footers = _MOST_OPEN if most_open == 1 else _MOST_FOOTERS
        self._expected = expected
        self._footers: dict[str, pq.FileMetaData] = {}
        self._reading: dict[str, threading.Lock] = {}
        self._group_rows: dict[str, tuple[int, ...]] = dict(expected.row_groups)
        self._of_thread = threading.local()

    def footer(self, url: str) -> pq.FileMetaData:
        """Return a shard's footer.

        Raises:
            ActivationsError: the shard cannot be read, or is not what the manifest says.
        """
        with self._reading.setdefault(url, threading.Lock()):
            footer = self._footers.pop(url, None)
            if footer is None:
                # On the Hub an address names a commit, so that what it holds never changes.
                footer = _footer_on_hub(url) if is_remote(url) else _footer(url)
                with reading_errors(url):
                    check_footer(url, footer, self._expected)
            self._footers[url] = footer
            for earlier in list(self._footers)[: -self._most_footers]:
                self._footers.pop(earlier, None)
            return footer

    def group_rows(self, url: str) -> tuple[int, ...]:
        """Return the rows of each row group of a shard: by its footer, if nothing else says it.

        Raises:
            ActivationsError: as `footer`.
        """
        if url not in self._group_rows:
            self._group_rows[url] = rows_of_groups(self.footer(url))
        return self._group_rows[url]

    def row_groups(self) -> Iterator[RowGroup]:
        """Yield the row groups of every shard, in order; a footer is read when its turn comes."""
        for url in self._urls:
            for number in range(len(self.group_rows(url))):
                yield self.row_group(url, number)

    def row_group(self, url: str, number: int) -> RowGroup:
        """Return one row group of a shard."""
        return RowGroup(url, number, self.group_rows(url)[number])

    @property
    def on_hub(self) -> bool:
        """Whether reading waits for a network."""
        return any(map(is_remote, self._urls))

    def open(self, url: str) -> ShardFile:
        """Open a shard by its footer; this thread's last few stay open.

        Opening takes as long as decoding two of a row group's vectors.
        """
        files: dict[str, ShardFile] = self._of_thread.__dict__
        file = files.pop(url, None) or ShardFile(url, self.footer(url), checked=self._checked)
        files[url] = file
        if len(files) > self._most_open:
            del files[next(iter(files))]
        return file


def _mostly_waited(elapsed: float, worked: float) -> bool:
    """Whether a read of `elapsed` seconds, `worked` of them on a processor, mostly waited."""
    return elapsed > _WAITED_LONG * worked


def read_in_order(
    shards: Shards, groups: Iterable[RowGroup], read: Callable[[ShardFile, int], _T]
) -> Iterator[_T]:
    """Yield `read(file, number)` of each row group, in order.

    Reading runs ahead in threads, a little at first, so that the first row group is not kept
    waiting by those behind it; after each that is there, one more is read at once, up to a bound;
    from the Hub only after each that mostly waited.

    Raises:
        ActivationsError: a file is damaged, or the Hub does not answer.
    """

    def job(group: RowGroup) -> tuple[_T, bool]:
        began, worked = time.monotonic(), time.thread_time()
        with source_errors(group.url, group.url), reading_errors(group.url, group.number):
            result = read(shards.open(group.url), group.number)
        return result, _mostly_waited(time.monotonic() - began, time.thread_time() - worked)

    remaining = iter(groups)
    pending: deque[Future[tuple[_T, bool]]] = deque()
    on_hub = shards.on_hub
    at_once, most_at_once = _AT_ONCE_ON_HUB if on_hub else _AT_ONCE_HERE
    pool = ThreadPoolExecutor(most_at_once, thread_name_prefix="read-ahead")
    try:
        while True:
            while len(pending) < at_once and (group := next(remaining, None)):
                if not on_hub:
                    # It costs no request, and this thread does nothing else meanwhile.
                    shards.footer(group.url)
                pending.append(pool.submit(job, group))
            if not pending:
                return
            result, waited = pending.popleft().result()
            yield result
            if waited or not on_hub:
                at_once = min(at_once + 1, most_at_once)
    finally:
        # Whoever stops in the middle does not wait for what they no longer want. A stream that is
        # still open when Python ends finds no threads to speak of.
        if not sys.is_finalizing():
            pool.shutdown(wait=False, cancel_futures=True)
