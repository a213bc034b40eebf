"""What `import` and `push` are asked for: files of a known layout, and a place for what is made."""

from __future__ import annotations

import re
from pathlib import Path

from builder.asked.new_place import LEAST_SHARE, check_figures, check_free
from builder.pt.layers_layout import is_layers_layout
from builder.pt.samples_layout import is_samples_layout
from builder.shards.plan import parse_shard_size
from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.room import check_room
from llava_amber_activations.formats.dataset_folder import MANIFEST_FILE
from llava_amber_activations.sources.source import open_source

# https://huggingface.co/docs/huggingface_hub/package_reference/utilities#validate-repo-id
_REPO_ID = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)


def check_import(folder: Path, dataset: Path, max_shard_size: str) -> None:
    """Check what can be checked of an import before its tools are loaded.

    Raises:
        ActivationsError: the folder holds no `.pt` files of a known layout, something is in the
            way at `dataset`, or its disk has too little room.
    """
    parse_shard_size(max_shard_size)
    check_free(dataset)
    check_pt_folder(folder)
    if is_layers_layout(folder):
        check_figures()
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*.pt"))
    what = "a dataset folder of these .pt files"
    check_room(dataset, LEAST_SHARE["float32"] * n_bytes, what)


def is_pt_folder(folder: Path) -> bool:
    """Whether a folder holds `.pt` files of either layout."""
    return folder.is_dir() and (is_layers_layout(folder) or is_samples_layout(folder))


def check_pt_folder(folder: Path) -> None:
    """Check that a folder holds `.pt` files of a layout that `import` reads.

    Raises:
        ActivationsError: it does not, or there is none.
    """
    if not folder.is_dir():
        raise ActivationsError(f"the folder {folder} does not exist")
    if not is_pt_folder(folder):
        raise ActivationsError(
            f"{folder} holds neither L*/batch_*_x.pt nor sample_*.pt: it is of no layout that is "
            "known"
        )


def check_push(folder: Path, repo_id: str, token: str | None) -> None:
    """Check what can be checked of a push before its tools are loaded.

    Raises:
        ActivationsError: the folder is none that is pushed, the repo's name is no name, or nobody
            is logged in.
    """
    if not folder.is_dir():
        raise ActivationsError(f"there is no such folder: {folder}")
    if not _REPO_ID.fullmatch(repo_id):
        raise ActivationsError(f"--repo-id {repo_id} is no name of a repo on the Hub: OWNER/NAME")
    if (folder / MANIFEST_FILE).is_file() or not is_pt_folder(folder):
        open_source(folder)
    # Here, because only pushing needs the Hub's client.
    from huggingface_hub import get_token

    if token is None and get_token() is None:
        raise ActivationsError(
            f"pushing to {repo_id} needs an access token that may write: log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
