"""Publishing a dataset folder as a dataset repo on the Hub."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from builder.asked.report_asked import DEFAULT_MAX_BYTES
from builder.folder.card import card_text
from builder.folder.format_tag import put_tag
from builder.folder.provenance import public_recipe
from builder.verify import verify
from llava_amber_activations.console.progress import Progress
from llava_amber_activations.console.sizes import parse_size
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.whole import json_text
from llava_amber_activations.formats.dataset_folder import (
    CARD_FILE,
    CONFIG_DIRS,
    MANIFEST_FILE,
    REPORT_FILE,
    FileEntry,
    Manifest,
)
from llava_amber_activations.parsing.typed_json import parse_json_object
from llava_amber_activations.sources.hub_errors import hub_errors, retried
from llava_amber_activations.sources.source import open_source

# What the Hub itself puts into a new repo.
_OF_THE_HUB = ".gitattributes"
_MOST_NAMED = 8
# So much is sent between one word of progress and the next.
_BYTES_AT_ONCE = 1_000_000_000
_UPLOAD: dict[str, Any] = {"repo_type": "dataset", "free_memory": False, "gitignore_content": ""}


@dataclass(frozen=True)
class Pushed:
    """Where a dataset was pushed to.

    Attributes:
        url, tag, commit: the repo's address, the tag of the format, the commit.
        deleted: the files that the push removed from the repo.
    """

    url: str
    tag: str
    commit: str
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class RepoState:
    """What a dataset repo holds at one commit.

    Attributes:
        commit: which one.
        files: paths of all files.
        manifest_text: of `manifest.json`, where there is one.
    """

    commit: str
    files: tuple[str, ...]
    manifest_text: bytes | None

    @property
    def is_empty(self) -> bool:
        """Whether nobody has put anything into it."""
        return set(self.files) <= {_OF_THE_HUB}

    @property
    def is_ours(self) -> bool:
        """Whether it is a dataset of this project, of a format that this release knows."""
        if self.manifest_text is None:
            return False
        try:
            value = parse_json_object(self.manifest_text, MANIFEST_FILE)
            Manifest.from_json(value, MANIFEST_FILE)
        except ActivationsError:
            return False
        return True


def push(
    dataset: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    overwrite: bool = False,
    report: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Verify a dataset folder, upload it as one commit, and tag it with its format version.

    What the repo has already is not sent again. Files, the removal of what an earlier push left
    over, card and manifest are one commit on top of what was there when the push began: a reader
    sees the earlier dataset or this one, and what somebody else pushes meanwhile stays.

    Args:
        private: make a new repo private; the visibility of one that exists stays.
        token: in the place of the login.
        overwrite: push to a repo that holds something else than a dataset of this project, too.
        report: make the dataset's report too, and upload it as `report.html`: a file of the dataset
            like its card, so that a later push without it takes it away.
        announce: is told in sentences what will be deleted, before it is.

    Raises:
        ActivationsError: the folder is not right, the repo holds something else or is pushed to by
            somebody else, or the Hub refuses or does not answer.
    """
    verify(dataset)
    manifest = open_source(dataset).manifest
    manifest = dataclasses.replace(manifest, recipe=public_recipe(manifest.recipe))
    made: dict[str, bytes] = {}
    if report:
        made[REPORT_FILE] = _report(dataset, repo_id)
        manifest = _with_file(manifest, REPORT_FILE, made[REPORT_FILE])
    made[CARD_FILE] = card_text(dataset, manifest, repo_id).encode()
    manifest = _with_file(manifest, CARD_FILE, made[CARD_FILE])
    manifest_text = json_text(manifest.to_json()).encode()
    tag = f"v{manifest.format_version}"
    api = HfApi(token=token)
    with hub_errors(repo_id, "push to"):
        url = retried(
            lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        )
        before = retried(lambda: _state(api, repo_id))
        deleted = _left_over(before, manifest)
        if not overwrite:
            _check_may_push(before, repo_id, manifest, deleted)
        for path in deleted:
            announce(f"deleting {path} of {repo_id}: it is no part of this dataset")
        additions = [
            *(
                CommitOperationAdd(path, dataset / path)
                for path in sorted(manifest.files)
                if path not in made
            ),
            *(CommitOperationAdd(path, content) for path, content in made.items()),
            CommitOperationAdd(MANIFEST_FILE, manifest_text),
        ]
        _upload(api, repo_id, additions)
        try:
            revision = retried(
                lambda: api.create_commit(
                    repo_id=repo_id,
                    repo_type="dataset",
                    commit_message=f"Activations, format {manifest.format_version}",
                    operations=[*map(CommitOperationDelete, deleted), *additions],
                    parent_commit=before.commit,
                )
            ).oid
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
            # Somebody else has pushed; or this push was taken, and its answer lost on the way.
            revision = "main"
        after = retried(lambda: _state(api, repo_id, revision))
        _check_is_pushed(after, repo_id, manifest, manifest_text)
        put_tag(api, repo_id, tag, after.commit)
    return Pushed(str(url), tag, after.commit, tuple(deleted))


def _upload(api: HfApi, repo_id: str, additions: list[CommitOperationAdd]) -> None:
    """Send the large files, some at once; the Hub shows none of them before the commit."""
    sizes = [addition.upload_info.size for addition in additions]
    # Running sums tell where the next some begin.
    numbers = [total // _BYTES_AT_ONCE for total in accumulate(sizes)]
    with Progress("upload", total=sum(sizes), unit="B") as progress:
        for _, group in groupby(zip(numbers, additions, strict=True), key=itemgetter(0)):
            some = [addition for _, addition in group]
            # A try after a failed one sends what that one has not sent. A .gitignore in the repo
            # would silently leave files out.
            retried(partial(api.preupload_lfs_files, repo_id, some, **_UPLOAD))
            progress.update(sum(addition.upload_info.size for addition in some))


def _report(dataset: Path, repo_id: str) -> bytes:
    # plotly is there where reports are made.
    from builder.report.report import make_report

    size = parse_size(DEFAULT_MAX_BYTES)
    return make_report(open_source(dataset), max_bytes=size, name=repo_id).text.encode()


def _with_file(manifest: Manifest, path: str, content: bytes) -> Manifest:
    entry = FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    return dataclasses.replace(manifest, files={**manifest.files, path: entry})


def _state(api: HfApi, repo_id: str, revision: str = "main") -> RepoState:
    info = api.dataset_info(repo_id, revision=revision)
    assert info.sha is not None
    files = tuple(sibling.rfilename for sibling in info.siblings or ())
    manifest_text = None
    if MANIFEST_FILE in files:
        path = f"datasets/{repo_id}@{info.sha}/{MANIFEST_FILE}"
        manifest_text = HfFileSystem(token=api.token).cat_file(path)
    return RepoState(info.sha, files, manifest_text)


def _left_over(before: RepoState, manifest: Manifest) -> list[str]:
    """Return the files of a repo that would be taken for a part of the dataset and are none.

    `verify` refuses a folder that holds other Parquet files beside its own.
    """
    of_before = set()
    if before.is_ours and before.manifest_text is not None:
        value = parse_json_object(before.manifest_text, MANIFEST_FILE)
        of_before = set(Manifest.from_json(value, MANIFEST_FILE).files)
    return [
        path
        for path in before.files
        if path not in manifest.files and path != MANIFEST_FILE
        if path in of_before or _is_among_shards(path)
    ]


def _is_among_shards(path: str) -> bool:
    place = PurePosixPath(path)
    return place.suffix == ".parquet" and str(place.parent) in CONFIG_DIRS.values()


def _check_may_push(
    before: RepoState, repo_id: str, manifest: Manifest, deleted: list[str]
) -> None:
    if before.is_ours or before.is_empty:
        return
    replaced = [p for p in before.files if p in manifest.files or p == MANIFEST_FILE]
    lost = [
        f"{what} {_named(paths)}"
        for what, paths in (("delete", deleted), ("replace", replaced))
        if paths
    ]
    would = f"a push would {' and '.join(lost)}" if lost else "a push would mix the two"
    raise ActivationsError(
        f"{repo_id} on the Hub is not a dataset of this project, and {would}: name another repo, "
        "or give --overwrite to push there all the same"
    )


def _named(paths: list[str]) -> str:
    more = len(paths) - _MOST_NAMED
    return ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more files" if more > 0 else "")


def _check_is_pushed(
    after: RepoState, repo_id: str, manifest: Manifest, manifest_text: bytes
) -> None:
    if after.manifest_text != manifest_text:
        raise ActivationsError(
            f"somebody else has pushed to {repo_id} since this push began (it is now on commit "
            f"{after.commit[:8]}), and nothing of theirs was changed: look at what is there, and "
            "run the same command again to replace it"
        )
    missing = sorted(set(manifest.files) - set(after.files))
    if missing:
        raise ActivationsError(
            f"the Hub did not take {_named(missing)} into {repo_id}: see whether a .gitignore "
            "there names them, and run the same command again"
        )
