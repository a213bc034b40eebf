"""A source of activations: a dataset folder on this machine, or a dataset repo on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.folder import MANIFEST_FILE, Manifest
from llava_amber_activations.footers import reading_errors
from llava_amber_activations.read_errors import read_errors
from llava_amber_activations.typed_json import parse_json_object

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A dataset folder, wherever it is.

    Attributes:
        name: as the user gave it.
        root: what its files' addresses begin with: a path, or `hf://datasets/OWNER/NAME@COMMIT`.
        manifest: the folder's manifest.
    """

    name: str
    root: str
    manifest: Manifest

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine."""
        return not is_remote(self.root)

    def url(self, path: str) -> str:
        """Return the address of a file of the folder, as `datasets` and fsspec take it.

        It is a path where the file lies in this machine's cache of the Hub.
        """
        address = f"{self.root}/{path}"
        if self.is_local:
            return address
        from llava_amber_activations.hub_files import copy_in_cache

        return copy_in_cache(address) or address

    def read_bytes(self, path: str) -> bytes:
        """Read a small file of the folder.

        Raises:
            ActivationsError: it is missing or cannot be read, or the Hub does not answer.
        """
        with source_errors(self.name, self.root):
            return _read(f"{self.root}/{path}")

    def open_parquet(self, path: str) -> pq.ParquetFile:
        """Open a Parquet file of the folder.

        Raises:
            ActivationsError: it is missing or not Parquet.
        """
        return open_parquet(self.url(path))


def open_source(source: str | Path, revision: str | None = None) -> Source:
    """Open a dataset folder, or a dataset repo of the Hub at one commit.

    Raises:
        ActivationsError: it is neither, or its manifest cannot be read, or the Hub cannot.
    """
    path = Path(source)
    if path.is_dir():
        check_no_revision(source, revision)
        root = str(path.resolve())
    elif _REPO_ID.fullmatch(str(source)):
        from llava_amber_activations.hub_files import repo_root

        root = repo_root(str(source), revision)
    else:
        raise ActivationsError(
            f"{source} is neither a folder nor a dataset's id on the Hub (OWNER/NAME)"
        )
    where = f"{source}/{MANIFEST_FILE}"
    missing = ActivationsError(
        f"{source} is not a dataset of activations: it has no {MANIFEST_FILE}"
    )
    if not is_remote(root) and not Path(root, MANIFEST_FILE).exists():
        raise missing
    with source_errors(str(source), root):
        try:
            text = _read(f"{root}/{MANIFEST_FILE}")
        except FileNotFoundError:
            raise missing from None
    return Source(str(source), root, Manifest.from_json(parse_json_object(text, where), where))


def check_no_revision(folder: object, revision: str | None) -> None:
    """Check that no revision is asked for of a folder, which has none.

    Raises:
        ActivationsError: one is.
    """
    if revision is not None:
        raise ActivationsError(
            f"{folder} is a folder, which has no revision '{revision}': only a dataset on the Hub "
            "has revisions. Leave the revision out, or name the dataset as OWNER/NAME"
        )


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
        from llava_amber_activations.hub_files import open_file

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
            from llava_amber_activations.hub_files import open_file

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


@contextmanager
def source_errors(name: str, url: str) -> Iterator[None]:
    """Turn what goes wrong with the Hub inside the block into one sentence; local files pass."""
    if not is_remote(url):
        yield
        return
    from llava_amber_activations.hub import hub_errors

    with hub_errors(name, "read"):
        yield


def is_remote(url: str) -> bool:
    """Whether an address is not a path on this machine."""
    return "://" in url


def _read(url: str) -> bytes:
    if not is_remote(url):
        with read_errors(url, "build or download the dataset again"):
            return Path(url).read_bytes()
    from llava_amber_activations.hub_files import read_bytes

    return read_bytes(url)
