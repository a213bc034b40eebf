"""The Hub's failures: the passing ones tried again, the others said in sentences."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava_amber_activations.errors import ActivationsError
from llava_amber_activations.files.read_errors import reason_of

# Not every call of the Hub's client tries again by itself (asking for a repo's commit does not).
# Five tries in fifteen seconds outlast a restart of one of the Hub's servers.
_WAITS = (1.0, 2.0, 4.0, 8.0)

# Who is told to come back later than this is better told so.
_MOST_WAITED = 300.0

# What the Hub's client puts in the place of whatever broke an upload.
_UPLOAD_FAILED = "Error while uploading"

_T = TypeVar("_T")

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def hub_errors(repo_id: str, doing: str) -> Iterator[None]:
    """Turn what goes wrong with the Hub inside the block into one sentence.

    Args:
        repo_id: the dataset.
        doing: such as "read" or "push to"; the sentence begins "cannot read OWNER/NAME".

    Raises:
        ActivationsError: in the place of any error of `huggingface_hub` or of the connection.
    """
    cannot = f"cannot {doing} {repo_id} on the Hub"
    try:
        yield
    except OfflineModeIsEnabled:
        raise ActivationsError(f"{cannot}: {_offline(repo_id, doing)}") from None
    except GatedRepoError:
        raise ActivationsError(
            f"{cannot}: it is gated. Ask for access on its page, and {_LOG_IN}"
        ) from None
    except RevisionNotFoundError:
        raise ActivationsError(
            f"{cannot}: it has no such revision. Name a branch, a tag or a commit of it"
        ) from None
    except (RepositoryNotFoundError, LocalTokenNotFoundError):
        raise ActivationsError(
            f"{cannot}: it does not exist, or it is private and you are not logged in with access "
            f"to it. Check its name, or {_LOG_IN}"
        ) from None
    except HFValidationError as error:
        raise ActivationsError(f"{cannot}: {error}") from None
    except EntryNotFoundError as error:
        raise ActivationsError(f"{cannot}: a file is missing ({reason_of(error)})") from None
    except HfHubHTTPError as error:
        raise ActivationsError(f"{cannot}: {_status(error)}") from None
    except Exception as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            # An upload that failed is a RuntimeError from what it failed with, here and below.
            raise ActivationsError(f"{cannot}: {_status(error.__cause__)}") from None
        if _is_connection(error) or _is_connection(error.__cause__):
            raise ActivationsError(
                f"{cannot}: no answer ({reason_of(error)}). Check the connection and run it again"
            ) from None
        if _is_answer(error) or _is_answer(error.__cause__):
            raise ActivationsError(
                f"{cannot}: its answer makes no sense ({reason_of(error)}). Check "
                "HF_ENDPOINT and the proxies on the way, and run it again"
            ) from None
        if str(error).startswith(_UPLOAD_FAILED):
            raise ActivationsError(
                f"{cannot}: an upload failed ({reason_of(error.__cause__ or error)}). Run the "
                "same command again, which sends no file twice"
            ) from None
        raise


def retried(call: Callable[[], _T], waits: Sequence[float] = _WAITS) -> _T:
    """Return `call()`, tried again while what goes wrong is the Hub's and may pass.

    For calls that the Hub's client does not itself try again. Where the Hub says when to come
    back, that is when.

    Args:
        waits: seconds before the second try, the third …
    """
    for wait in waits:
        try:
            return call()
        except Exception as error:
            if not _may_pass(error):
                raise
            asked = _asked_to_wait(error)
            if asked is not None and asked > _MOST_WAITED:
                raise
            time.sleep(wait if asked is None else asked)
    return call()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status in (408, 429)
    return _is_connection(error)


def _asked_to_wait(error: Exception) -> float | None:
    """Return the seconds after which the Hub wants to be asked again, where its answer says so."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    after = headers.get("Retry-After", "").strip()
    if after.isdecimal():
        return float(after)
    # https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-09.html
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit and error.response.status_code == 429 else None


def _is_connection(error: BaseException | None) -> bool:
    if isinstance(error, ConnectionError):
        return not isinstance(error, OfflineModeIsEnabled)
    # The client compares a downloaded file's size with what was announced.
    short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return short or _is_of_http(error, "TransportError")


def _is_answer(error: BaseException | None) -> bool:
    """Whether an answer came that is none: a circle of redirects, no JSON, no commit."""
    kinds = (json.JSONDecodeError, FileMetadataError)
    # A StreamError is a redirect of an upload, whose body cannot be sent twice.
    return isinstance(error, kinds) or _is_of_http(error, "RequestError", "StreamError")


def _is_of_http(error: BaseException | None, *kinds: str) -> bool:
    # httpx (or httpx2, by the release of huggingface_hub) is the Hub client's own matter.
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return any(f"{client}.{kind}" in names for client in ("httpx", "httpx2") for kind in kinds)


def _offline(repo_id: str, doing: str) -> str:
    if doing != "read":
        return "HF_HUB_OFFLINE is set. Unset it, or run it where there is a connection"
    repo = repo_id.removeprefix("hf://datasets/").partition("@")[0]
    return (
        f"HF_HUB_OFFLINE is set, and the cache of this machine ({constants.HF_HUB_CACHE}) does not "
        f"hold it. Where there is a connection, run `hf download {repo} --repo-type dataset`, or "
        "open it once, with the same HF_HOME"
    )


def _status(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status in (401, 403):
        return (
            f"it answered {status}: the token is wrong or may not do this. {_LOG_IN.capitalize()}"
        )
    if status >= 500 or status == 429:
        return f"it goes on answering {status}. Run the same command again later"
    return f"it answered {status} ({reason_of(error)})"
