"""Publishing a dataset folder as a dataset repo on the Hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from builder.card import card_text
from builder.import_pt import import_pt, is_pt_folder
from builder.verify import verify
from llava_amber_activations.folder import (
    CARD_FILE,
    CONFIG_DIRS,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
)
from llava_amber_activations.hub import hub_errors, retried
from llava_amber_activations.source import open_source

# What `load_dataset` or the card would still show of an earlier push.
_OURS = (*(f"{folder}/*.parquet" for folder in CONFIG_DIRS.values()), "figures/*.png")


@dataclass(frozen=True)
class Pushed:
    """Where a dataset was pushed to: its address, the tag of its format, the commit."""

    url: str
    tag: str
    commit: str


def dataset_to_push(folder: Path) -> tuple[Path, bool]:
    """Return the dataset folder to push: `folder` itself, or what its `.pt` files convert to.

    A folder of `.pt` files is imported into `FOLDER-dataset` beside it, which is kept, so that an
    interrupted push goes on with the same files.

    Returns:
        The dataset folder, and whether it is made from `.pt` files.

    Raises:
        ActivationsError: its `.pt` files cannot be imported.
    """
    if (folder / MANIFEST_FILE).is_file() or not is_pt_folder(folder):
        return folder, False
    folder = folder.absolute()
    converted = folder.with_name(f"{folder.name}-dataset")
    if not (converted / MANIFEST_FILE).is_file():
        import_pt(folder, converted)
    return converted, True


def push(
    dataset: Path, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> Pushed:
    """Verify a dataset folder, upload it, and tag it with its format version.

    What the repo has already is not sent again. The card and the manifest come last, in one commit
    with the removal of what an earlier push left over: until then a reader sees the earlier
    manifest, never one whose files are not there yet.

    Args:
        private: make a new repo private; the visibility of one that exists stays.
        token: in the place of the login.

    Raises:
        ActivationsError: the folder is not right, or the Hub refuses or does not answer.
    """
    verify(dataset)
    manifest = open_source(dataset).manifest
    card = card_text(dataset, manifest, repo_id).encode()
    manifest = _with_card(manifest, card)
    manifest_text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"
    tag = f"v{manifest.format_version}"
    api = HfApi(token=token)
    with hub_errors(repo_id, "push to"):
        url = retried(
            lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        )
        message = f"Activations, format {manifest.format_version}"
        # A try after a failed one sends what that one has not sent.
        retried(
            lambda: api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=dataset,
                commit_message=message,
                allow_patterns=[path for path in manifest.files if path != CARD_FILE],
            )
        )
        left_over = retried(lambda: _left_over(api, repo_id, manifest))
        commit = retried(
            lambda: api.create_commit(
                repo_id=repo_id,
                repo_type="dataset",
                commit_message=message,
                operations=[
                    *(CommitOperationDelete(path) for path in left_over),
                    CommitOperationAdd(CARD_FILE, card),
                    CommitOperationAdd(MANIFEST_FILE, manifest_text.encode()),
                ],
            )
        )
        retried(lambda: _move_tag(api, repo_id, tag, commit.oid))
    return Pushed(str(url), tag, commit.oid)


def _with_card(manifest: Manifest, card: bytes) -> Manifest:
    entry = FileEntry(hashlib.sha256(card).hexdigest(), len(card))
    return dataclasses.replace(manifest, files={**manifest.files, CARD_FILE: entry})


def _left_over(api: HfApi, repo_id: str, manifest: Manifest) -> list[str]:
    """Return the files of an earlier push that this one does not hold."""
    return [
        path
        for path in api.list_repo_files(repo_id, repo_type="dataset")
        if path not in manifest.files and any(fnmatch(path, pattern) for pattern in _OURS)
    ]


def _move_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Put the format's tag on a commit; a tag cannot be moved on the Hub, only made anew."""
    refs = api.list_repo_refs(repo_id, repo_type="dataset")
    present = {ref.name: ref.target_commit for ref in refs.tags}
    if present.get(tag) == commit:
        return
    if tag in present:
        api.delete_tag(repo_id, tag=tag, repo_type="dataset")
    api.create_tag(repo_id, tag=tag, revision=commit, repo_type="dataset")
