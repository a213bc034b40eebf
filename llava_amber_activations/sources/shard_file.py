"""One Parquet file of a source, here or on the Hub, open for pyarrow and as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_amber_activations.sources.footers import reading_errors


def is_remote(url: str) -> bool:
    """Whether an address is not a path on this machine."""
    return "://" in url


@contextmanager
def source_errors(name: str, url: str) -> Iterator[None]:
    """Turn what goes wrong with the Hub inside the block into one sentence; local files pass."""
    if not is_remote(url):
        yield
        return
    from llava_amber_activations.sources.hub_errors import hub_errors

    with hub_errors(name, "read"):
        yield


def open_parquet(
    url: str, metadata: pq.FileMetaData | None = None, *, checked: bool = False
) -> pq.ParquetFile:
    """Open one Parquet file, here or on the Hub.

    On the Hub nothing is read ahead of what is asked for: a read of some columns of a row group
    fetches their bytes, neighbours in one request, and no others.

    Args:
        metadata: the file's footer, where it has been read before.
        checked: compare the checksum of every page that has one.

    Raises:
        ActivationsError: it is missing or not Parquet, or the Hub does not answer.
    """
    with source_errors(url, url), reading_errors(url):
        if not is_remote(url):
            return pq.ParquetFile(
                url, metadata=metadata, memory_map=True, page_checksum_verification=checked
            )
        from llava_amber_activations.sources.hub_files import open_file

        return pq.ParquetFile(
            open_file(url),
            metadata=metadata,
            pre_buffer=True,
            page_checksum_verification=checked,
        )


class ShardFile:
    """One Parquet file, open for pyarrow and as bytes; closed by `with`, or with its last user."""

    def __init__(
        self, url: str, metadata: pq.FileMetaData | None = None, *, checked: bool = False
    ) -> None:
        """Open it as `open_parquet` does."""
        self.url = url
        self.checked = checked
        self.parquet = open_parquet(url, metadata, checked=checked)
        if is_remote(url):
            from llava_amber_activations.sources.hub_files import open_file

            self._bytes: Any = open_file(url)
        else:
            with reading_errors(url):
                self._bytes = pa.memory_map(url)

    @cached_property
    def schema(self) -> pa.Schema:
        """Its Arrow schema, which pyarrow makes anew every time."""
        return self.parquet.schema_arrow

    def read(self, start: int, size: int) -> memoryview:
        """Read bytes, in one request where the file is on the Hub; fewer at its end."""
        self._bytes.seek(start)
        read = getattr(self._bytes, "read_buffer", self._bytes.read)
        # Arrow exports signed bytes.
        return memoryview(read(size)).cast("B")

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._bytes.close()
        self.parquet.close()
