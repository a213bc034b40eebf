"""A source of activations: a dataset folder on this machine, or a dataset repo on the Hub."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import read_errors
from llava_amber_activations.formats.dataset_folder import MANIFEST_FILE, REMEDY, Manifest
from llava_amber_activations.parsing.typed_json import parse_json_object
from llava_amber_activations.sources.footers import Expected
from llava_amber_activations.sources.shard_file import is_remote, open_parquet, source_errors
from llava_amber_activations.store.sums import RECIPE_FILE

_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


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

    def url(self, path: str) -> str:
        """Return the address of a file of the folder, as `datasets` and fsspec take it.

        It is a path where the file lies in this machine's cache of the Hub.
        """
        address = f"{self.root}/{path}"
        if not is_remote(self.root):
            return address
        from llava_amber_activations.sources.hub_files import copy_in_cache

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
        from llava_amber_activations.sources.hub_files import repo_root

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
        if Path(root, RECIPE_FILE).is_file():
            raise ActivationsError(
                f"{source} is a capture store, not a dataset: build it first, with "
                f"`llava-amber build {source} DATASET`"
            )
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


def expected_of(source: Source, paths: Sequence[str]) -> Expected:
    """Return what a source's manifest says of shards that hold layers' vectors."""
    manifest = source.manifest
    return dataclasses.replace(
        expected_rows(source, paths), width=manifest.recipe.hidden_size, dtype=manifest.dtype
    )


def expected_rows(source: Source, paths: Sequence[str]) -> Expected:
    """Return what a source's manifest says of any shards: their rows, and their row groups."""
    entries = {source.url(path): source.manifest.files[path] for path in paths}
    return Expected(
        rows={url: entry.rows for url, entry in entries.items() if entry.rows is not None},
        row_groups={
            url: entry.row_groups for url, entry in entries.items() if entry.row_groups is not None
        },
    )


def _read(url: str) -> bytes:
    if not is_remote(url):
        with read_errors(url, REMEDY):
            return Path(url).read_bytes()
    from llava_amber_activations.sources.hub_files import read_bytes

    return read_bytes(url)
