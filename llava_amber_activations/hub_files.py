"""Files on the Hub: a repo at one commit, and its files read without more than is asked for.

Apart from `source`, because the Hub's client takes as long to import as a small layer to read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import IO, TypeVar

import fsspec
from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from llava_amber_activations.hub import hub_errors, retried
from llava_amber_activations.recipe import FORMAT_VERSION

_T = TypeVar("_T")

_FORMAT_TAG = re.compile(r"v(\d+)\.\d+")
# The tag of a format is absent while a push moves it: for two requests, or for as long as a Hub
# that stumbles then makes the push try again.
_TAG_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)


def repo_root(repo_id: str, revision: str | None) -> str:
    """Return what the addresses of a dataset repo's files begin with, at one commit from here on.

    A push in the middle of a reading must not mix two.

    Raises:
        ActivationsError: there is no such repo or revision, or the Hub does not answer.
    """
    with hub_errors(repo_id, "read"):
        info = _asked_again(
            lambda: retried(lambda: HfApi().dataset_info(repo_id, revision=revision)), revision
        )
    return f"hf://datasets/{repo_id}@{info.sha}"


def _asked_again(call: Callable[[], _T], revision: str | None) -> _T:
    """Return `call()`, made again for a while if `revision` is a format's tag and is not there."""
    tag = _FORMAT_TAG.fullmatch(revision or "")
    can_be_read = tag is not None and int(tag[1]) <= int(FORMAT_VERSION.partition(".")[0])
    for wait in _TAG_WAITS if can_be_read else ():
        try:
            return call()
        except RevisionNotFoundError:
            time.sleep(wait)
    return call()


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
