"""A Hugging Face Hub on the loopback interface, for tests with the real clients.

`LoopbackHub` serves the routes that `huggingface_hub` and `datasets` use: repositories with
commits and tags, plain LFS uploads, and downloads with ranges. It counts what it sends, and it
misbehaves on demand.

    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=DEFAULT_TOKEN)
        ...
        hub.faults = Faults(every_503=5, only="resolve")
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import secrets
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from loopback_http import Call, Server
from loopback_routes import Handler
from loopback_store import Repo, Store

DEFAULT_TOKEN = "hf_loopback"


@dataclass
class FileCount:
    gets: int = 0
    heads: int = 0
    bytes: int = 0


@dataclass
class Faults:
    """Which requests to spoil. Every kind of fault counts the requests that it may strike.

    Each strikes every n-th request. In the place of an answer: `every_503` and `every_429` (with
    `retry_after` seconds, if set), `reset_every` a connection reset, `loop_every` a redirect to the
    same place. After the work is done: `lose_answer` a connection reset. A successful GET's body:
    `cut_every` sends its first half and hangs up, `stall_every` its first half and then nothing for
    `stalled` seconds, `short_every` half of it as if it were all. `down` answers 503 to everything.

    `only` narrows them to a kind of route, a path prefix (it starts with "/") or a predicate; the
    first `after` requests are spared, and after `times` faults all is well again. What a client
    asks beside its work (routes of kind "other") is neither struck nor counted, so that the n-th
    request is the same each time.
    """

    every_503: int = 0
    every_429: int = 0
    retry_after: int | None = None
    reset_every: int = 0
    loop_every: int = 0
    lose_answer: int = 0
    cut_every: int = 0
    stall_every: int = 0
    stalled: float = 3.0
    short_every: int = 0
    down: bool = False
    only: str | Callable[[Call], bool] | None = None
    after: int = 0
    times: int | None = None
    fired: Counter[str] = field(default_factory=Counter)
    _seen: Counter[str] = field(default_factory=Counter, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def before(self, call: Call) -> str:
        """The fault that takes the place of the answer, or ""."""
        periods = {"down": int(self.down), "reset": self.reset_every, "503": self.every_503}
        periods |= {"429": self.every_429, "loop": self.loop_every}
        return self._strike(call, periods)

    def answer(self, call: Call) -> str:
        """The fault that takes the place of the answer when the work is done, or ""."""
        return self._strike(call, {"lost": self.lose_answer})

    def body(self, call: Call) -> str:
        """The fault that spoils the body of a successful GET, or ""."""
        periods = {"cut": self.cut_every, "stall": self.stall_every, "short": self.short_every}
        return self._strike(call, periods)

    def _strike(self, call: Call, periods: dict[str, int]) -> str:
        if not self._matches(call):
            return ""
        with self._lock:
            struck = ""
            for name, period in periods.items():
                if not period:
                    continue
                self._seen[name] += 1
                due = self._seen[name] - self.after
                spent = self.times is not None and self.fired.total() >= self.times
                if not struck and not spent and due > 0 and due % period == 0:
                    struck = name
                    self.fired[name] += 1
        call.fault = struck or call.fault
        return struck

    def _matches(self, call: Call) -> bool:
        if call.kind == "other":
            return False
        if callable(self.only):
            return self.only(call)
        if self.only and self.only.startswith("/"):
            return call.path.startswith(self.only)
        return self.only in (None, call.kind)


class LoopbackHub:
    """The server. `stop` and `start` may alternate: port and contents stay the same."""

    def __init__(
        self,
        root: Path | None = None,
        tokens: Collection[str] = (DEFAULT_TOKEN,),
        user: str = "loopback",
        port: int = 0,
        lfs_threshold: int = 1 << 20,
    ) -> None:
        self._scratch = None
        if root is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="loopback-hub-")
            root = Path(self._scratch.name)
        self.store = Store(root)
        self.tokens = frozenset(tokens)
        self.user = user
        self.port = port
        self.lfs_threshold = lfs_threshold
        self.faults = Faults()
        self._secret = secrets.token_bytes(16)
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._server: Server | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._scratch:
            self._scratch.cleanup()

    def start(self) -> None:
        self._server = Server(self.port, self, Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and hang up on those that are open."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def repo(self, repo_id: str, kind: str = "dataset") -> Repo:
        return self.store.repos[kind, repo_id]

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """What the hub holds of a file of a dataset."""
        return self.store.read(self.repo(repo_id), path, revision)

    def grant(self, path: str) -> str:
        """The signature under which `path` may be written without a token."""
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()

    def client_env(self, home: Path, token: str | None = DEFAULT_TOKEN) -> dict[str, str]:
        """The environment for a client process that talks to this hub and to nothing else."""
        dropped = ("HF_", "HUGGING", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
        env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        env |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            # With hf_xet installed the client uploads through it without asking the server.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }
        return env | ({"HF_TOKEN": token} if token else {})

    # --- accounting ---

    def log(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    def reset_counts(self) -> None:
        with self._lock:
            self._calls = []

    def requests(
        self,
        method: str | None = None,
        path_prefix: str = "",
        kind: str | None = None,
        where: Callable[[Call], bool] = lambda call: True,
    ) -> list[Call]:
        """The requests since the last reset, in order of arrival; `path_prefix` is of the URL."""
        with self._lock:
            calls = list(self._calls)
        return [
            call
            for call in calls
            if method in (None, call.method) and kind in (None, call.kind)
            if call.path.startswith(path_prefix) and where(call)
        ]

    def file_counts(self, path_prefix: str = "", repo: str | None = None) -> dict[str, FileCount]:
        """Downloads by path in the repository."""
        counts: dict[str, FileCount] = {}
        for call in self.requests(kind="resolve"):
            if repo in (None, call.repo) and call.file.startswith(path_prefix):
                count = counts.setdefault(call.file, FileCount())
                count.gets += call.method == "GET"
                count.heads += call.method == "HEAD"
                count.bytes += call.bytes_sent if call.status < 300 else 0
        return counts

    def bytes_sent(self, path_prefix: str = "", repo: str | None = None) -> int:
        """Bytes of file contents sent, of the files whose path in the repository starts so."""
        return sum(count.bytes for count in self.file_counts(path_prefix, repo).values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a Hugging Face Hub on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--root", type=Path, help="folder for file contents (default: temporary)")
    parser.add_argument("--token", action="append", help="a valid token; may be repeated")
    parser.add_argument("--user", default="loopback", help="the namespace of repos without one")
    args = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    tokens = args.token or (DEFAULT_TOKEN,)
    with LoopbackHub(args.root, tokens, args.user, args.port) as hub:
        print(hub.endpoint, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
