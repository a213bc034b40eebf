"""Files on the Hub: a repo at one commit, and its files read without more than is asked for.

Apart from `source`, because the Hub's client takes as long to import as a small layer to read.
"""

from __future__ import annotations

from typing import IO

import fsspec
from huggingface_hub import HfApi

from llava_amber_activations.hub import hub_errors, retried


def repo_root(repo_id: str, revision: str | None) -> str:
    """Return what the addresses of a dataset repo's files begin with, at one commit from here on.

    A push in the middle of a reading must not mix two.

    Raises:
        ActivationsError: there is no such repo or revision, or the Hub does not answer.
    """
    with hub_errors(repo_id, "read"):
        commit = retried(lambda: HfApi().dataset_info(repo_id, revision=revision)).sha
    return f"hf://datasets/{repo_id}@{commit}"


def open_file(url: str) -> IO[bytes]:
    """Open a file of which nothing is read ahead of what is asked for."""
    fs, path = fsspec.url_to_fs(url)
    file: IO[bytes] = retried(lambda: fs.open(path, "rb", cache_type="none"))
    return file


def read_bytes(url: str) -> bytes:
    """Read a small file."""
    fs, path = fsspec.url_to_fs(url)
    content: bytes = retried(lambda: fs.cat_file(path))
    return content
