"""Files on the Hub: a repo at one commit, and its files read without more than is asked for.

Apart from `source`, because the Hub's client takes as long to import as a small layer to read.

Small files (manifest, statistics) are kept in the cache of `huggingface_hub`, with the commit that
a revision was when it was last asked for. Shards are kept by whoever downloads them whole
(`hf download`, `load_dataset`); those that lie in the cache are read from there. So with
HF_HUB_OFFLINE=1 whatever is there opens, and whatever is not says so at once.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TypeVar

import fsspec
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from llava_amber_activations.formats.dataset_folder import MANIFEST_FILE
from llava_amber_activations.formats.version import FORMAT_VERSION
from llava_amber_activations.sources.fetched import count_fetched
from llava_amber_activations.sources.hub_errors import hub_errors, retried

_T = TypeVar("_T")

_ROOT = re.compile(r"hf://datasets/(?P<repo_id>[^/@]+/[^/@]+)@(?P<commit>[^/]+)/(?P<path>.+)")
_FORMAT_TAG = re.compile(r"v(\d+)\.\d+")
# The tag of a format is absent while a push moves it: for two requests, or for as long as a Hub
# that stumbles then makes the push try again.
_TAG_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0)
_PROGRESS_BAR = "huggingface_hub.http_get"
_NO_CACHE = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EPERM)
# A body of another length than was asked for is asked for so often.
_TRIES = 3


def repo_root(repo_id: str, revision: str | None) -> str:
    """Return what the addresses of a dataset repo's files begin with, at one commit from here on.

    A push in the middle of a reading must not mix two. Offline, it is the commit that the revision
    was when it was last opened.

    Raises:
        ActivationsError: there is no such repo or revision, or the Hub does not answer; offline,
            it has never been opened.
    """
    with hub_errors(repo_id, "read"):
        commit = _commit_of(repo_id, revision or constants.DEFAULT_REVISION)
    return f"hf://datasets/{repo_id}@{commit}"


def _commit_of(repo_id: str, revision: str) -> str:
    if constants.HF_HUB_OFFLINE:
        cached = _in_cache(repo_id, MANIFEST_FILE, revision)
        if cached is None:
            raise OfflineModeIsEnabled(f"{repo_id} at {revision}")
        # CACHE/datasets--OWNER--NAME/snapshots/COMMIT/manifest.json
        return Path(cached).parent.name
    info = _asked_again(
        lambda: retried(
            lambda: HfApi().dataset_info(
                repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        ),
        revision,
    )
    commit = info.sha
    assert commit is not None
    if any(sibling.rfilename == MANIFEST_FILE for sibling in info.siblings or ()):
        # By its name, so that the cache remembers which commit the revision is.
        _download(repo_id, MANIFEST_FILE, revision)
    return commit


def _asked_again(call: Callable[[], _T], revision: str) -> _T:
    """Return `call()`, made again for a while if `revision` is a format's tag and is not there."""
    tag = _FORMAT_TAG.fullmatch(revision)
    can_be_read = tag is not None and int(tag[1]) <= int(FORMAT_VERSION.partition(".")[0])
    for wait in _TAG_WAITS if can_be_read else ():
        try:
            return call()
        except RevisionNotFoundError:
            time.sleep(wait)
    return call()


@lru_cache(maxsize=4096)
def copy_in_cache(url: str) -> str | None:
    """Return the path of a file's copy in the cache of `huggingface_hub`, if there is one."""
    parts = _parts(url)
    return None if parts is None else _in_cache(*parts)


def open_file(url: str) -> IO[bytes]:
    """Open a file of which nothing is read ahead of what is asked for."""
    _check_online(url)
    fs, path = fsspec.url_to_fs(url)
    file: IO[bytes] = retried(lambda: fs.open(path, "rb", cache_type="none"))
    cache = getattr(file, "cache", None)
    if cache is not None:
        cache.fetcher = _whole(cache.fetcher)
    return file


def read_bytes(url: str) -> bytes:
    """Read a small file, and keep it in the cache of `huggingface_hub`.

    Raises:
        FileNotFoundError: the repo holds no such file.
    """
    parts = _parts(url)
    path = None if parts is None else _download(*parts)
    if path is not None:
        return Path(path).read_bytes()
    fs, place = fsspec.url_to_fs(url)
    content: bytes = retried(lambda: fs.cat_file(place))
    count_fetched(len(content))
    return content


def _whole(fetch: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    """Return `fetch`, asked again where what came is not as long as what was asked for."""

    def fetch_whole(start: int, end: int) -> bytes:
        for _ in range(_TRIES):
            content = fetch(start, end)
            count_fetched(len(content))
            if len(content) == end - start:
                return content
        raise ConnectionError(f"{len(content)} bytes came where {end - start} were asked for")

    return fetch_whole


def _parts(url: str) -> tuple[str, str, str] | None:
    """Return repo, path in it, and commit of an address that `repo_root` has begun."""
    match = _ROOT.fullmatch(url)
    return match and (match["repo_id"], match["path"], match["commit"])


def _in_cache(repo_id: str, path: str, revision: str) -> str | None:
    found = try_to_load_from_cache(repo_id, path, repo_type="dataset", revision=revision)
    return found if isinstance(found, str) else None


def _download(repo_id: str, path: str, revision: str) -> str | None:
    """Return a file's place in the cache, fetching it first; None where nothing can be kept."""

    def download() -> str:
        try:
            return hf_hub_download(repo_id, path, repo_type="dataset", revision=revision)
        except LocalEntryNotFoundError as error:
            # Asking for it failed: why is what there is to say.
            raise error.__cause__ or OfflineModeIsEnabled(path) from None

    before = _in_cache(repo_id, path, revision)
    try:
        with _no_progress_bar():
            found = retried(download)
    except RemoteEntryNotFoundError:
        raise FileNotFoundError(f"{repo_id} has no {path}") from None
    except OSError as error:
        if error.errno in _NO_CACHE:
            return None
        raise
    if found != before:
        count_fetched(Path(found).stat().st_size)
    return found


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    if are_progress_bars_disabled(_PROGRESS_BAR):
        yield
        return
    disable_progress_bars(_PROGRESS_BAR)
    try:
        yield
    finally:
        enable_progress_bars(_PROGRESS_BAR)


def _check_online(url: str) -> None:
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled(url)
