"""The tag of the format's version on a dataset repo: `v1.1` on the last push of format 1.1.

The Hub's API makes and deletes tags, and moves none. So a tag that has to move is absent for as
long as two requests take. It is left alone where it is right already; it is put back where it was
when it cannot be made anew; and this project's readers ask again for a format's tag that is not
there (`llava_amber_activations.sources.hub_files`).
"""

from __future__ import annotations

from contextlib import suppress

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.sources.hub_errors import retried

# Short at first, because readers wait for it.
_WAITS = (0.1, 0.3, 1.0, 2.0, 4.0)


def put_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Put a tag on a commit of a dataset repo, moving it where it is on another.

    Raises:
        ActivationsError: it cannot be moved; the message says where it is.
        HfHubHTTPError: it is new and cannot be made.
    """
    before = _target(api, repo_id, tag)
    if before == commit:
        return
    if before is None:
        _make(api, repo_id, tag, commit)
        return
    _delete(api, repo_id, tag)
    try:
        _make(api, repo_id, tag, commit)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        try:
            _make(api, repo_id, tag, before)
            state = f"is still on the earlier push ({before[:8]})"
        except Exception:
            state = f"is missing now (it was on {before[:8]})"
        raise ActivationsError(
            f"{repo_id} holds the new data (commit {commit[:8]}), but its tag {tag} could not be "
            f"moved ({reason}) and {state}: run the same command again, which sends no file twice"
        ) from None


def _target(api: HfApi, repo_id: str, tag: str) -> str | None:
    refs = retried(lambda: api.list_repo_refs(repo_id, repo_type="dataset"), _WAITS)
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def _delete(api: HfApi, repo_id: str, tag: str) -> None:
    # It is not there where an earlier try did it and its answer was lost.
    with suppress(RevisionNotFoundError):
        retried(lambda: api.delete_tag(repo_id, tag=tag, repo_type="dataset"), _WAITS)


def _make(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    try:
        retried(
            lambda: api.create_tag(repo_id, tag=tag, revision=commit, repo_type="dataset"), _WAITS
        )
    except HfHubHTTPError as error:
        # As above, where it is on the commit; another push may have put it on its own since.
        if error.response.status_code != 409 or _target(api, repo_id, tag) is None:
            raise
