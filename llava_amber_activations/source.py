"""A source of activations: a dataset folder on this machine, or a dataset repo on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files import parse_json_object
from llava_amber_activations.folder import MANIFEST_FILE, Manifest

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A dataset folder, wherever it is.

    Attributes:
        name: as the user gave it.
        root: folder's path in `fs`.
        fs: the file system that holds it.
        manifest: the folder's manifest.
    """

    name: str
    root: str
    fs: Any
    manifest: Manifest

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine."""
        return isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)

    def url(self, path: str) -> str:
        """Return what `datasets` opens a file of the folder by: a path, or an `hf://` address."""
        full = f"{self.root}/{path}"
        return full if self.is_local else f"hf://{full}"

    def open_parquet(self, path: str) -> pq.ParquetFile:
        """Open a Parquet file of the folder.

        Raises:
            ActivationsError: it is missing or not Parquet.
        """
        return open_parquet(f"{self.root}/{path}", self.fs)


def open_source(source: str | Path, revision: str | None = None) -> Source:
    """Open a dataset folder, or a dataset repo of the Hub.

    Raises:
        ActivationsError: it is neither, or its manifest cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        fs, root = fsspec.filesystem("file"), str(path.resolve())
    elif _REPO_ID.fullmatch(str(source)):
        fs = fsspec.filesystem("hf")
        root = f"datasets/{source}" + (f"@{revision}" if revision else "")
    else:
        raise ActivationsError(
            f"{source} is neither a folder nor a dataset's id on the Hub (OWNER/NAME)"
        )
    where = f"{source}/{MANIFEST_FILE}"
    try:
        text = fs.cat_file(f"{root}/{MANIFEST_FILE}")
    except FileNotFoundError:
        raise ActivationsError(
            f"{source} is not a dataset of activations: it has no {MANIFEST_FILE}"
        ) from None
    return Source(str(source), root, fs, Manifest.from_json(parse_json_object(text, where), where))


def open_parquet(path: str, fs: Any) -> pq.ParquetFile:
    """Open one Parquet file.

    Raises:
        ActivationsError: it is missing or not Parquet.
    """
    try:
        return pq.ParquetFile(path, filesystem=fs, pre_buffer=True)
    except FileNotFoundError:
        raise ActivationsError(f"{path} is missing: build or download the dataset again") from None
    except (ValueError, OSError) as error:
        raise ActivationsError(
            f"{path} is damaged ({error}): build or download the dataset again"
        ) from None
