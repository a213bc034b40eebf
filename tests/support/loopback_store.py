"""Repositories, commits, refs and file contents of a loopback Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

# fmt: off
LFS_SUFFIXES = (
    ".7z", ".arrow", ".avi", ".bin", ".bz2", ".gif", ".gz", ".h5", ".jpeg", ".jpg", ".mp3", ".mp4",
    ".npy", ".npz", ".onnx", ".parquet", ".pickle", ".pkl", ".png", ".pt", ".pth", ".safetensors",
    ".tar", ".tiff", ".wav", ".webp", ".zip", ".zst",
)
# fmt: on
GITATTRIBUTES = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)


class HubError(Exception):
    """A refusal, with the status and `X-Error-Code` by which the clients tell them apart."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def git_oid(content: bytes) -> str:
    """The object id that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The small text that git stores in place of an LFS file."""
    spec = "https://git-lfs.github.com/spec/v1"
    return f"version {spec}\noid sha256:{sha256}\nsize {size}\n".encode()


def timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `sha256` is set when it is kept in LFS."""

    path: str
    size: int
    oid: str
    sha256: str | None = None
    last_commit: str = ""

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.etag, self.size))


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    description: str
    date: datetime
    parent: str | None
    files: dict[str, Entry]

    def brief(self) -> dict[str, Any]:
        return {"id": self.oid, "title": self.title, "date": timestamp(self.date)}


@dataclass
class Repo:
    """A repository: commits never change, branches move, tags stay."""

    kind: str
    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    def commit(self, revision: str = "main") -> Commit:
        """The commit that a branch, tag or commit id stands for."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def entry(self, revision: str, path: str) -> tuple[Commit, Entry]:
        commit = self.commit(revision)
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.oid)
        return commit, commit.files[path]

    def history(self, revision: str) -> list[Commit]:
        commit: Commit | None = self.commit(revision)
        commits = []
        while commit:
            commits.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return commits

    def nodes(self, revision: str, expand: bool, folder: str = "") -> dict[str, dict[str, Any]]:
        """Files and folders below `folder`, by path, as the API describes them."""
        prefix = folder and folder + "/"
        folders: dict[str, list[Entry]] = {}
        out: dict[str, dict[str, Any]] = {}
        for entry in self.commit(revision).files.values():
            if not entry.path.startswith(prefix):
                continue
            out[entry.path] = node = {
                "type": "file", "path": entry.path, "size": entry.size, "oid": entry.oid
            }  # fmt: skip
            if entry.sha256:
                node["lfs"] = {
                    "oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size
                }  # fmt: skip
            if expand:
                node["lastCommit"] = self.commits[entry.last_commit].brief()
            parts = entry.path.split("/")
            for depth in range(prefix.count("/") + 1, len(parts)):
                folders.setdefault("/".join(parts[:depth]), []).append(entry)
        for path, entries in folders.items():
            listing = "".join(f"{e.path}\0{e.oid}\n" for e in sorted(entries, key=lambda e: e.path))
            tree = hashlib.sha1(listing.encode()).hexdigest()
            out[path] = node = {"type": "directory", "path": path, "size": 0, "oid": tree}
            if expand:
                newest = max((self.commits[e.last_commit] for e in entries), key=lambda c: c.date)
                node["lastCommit"] = newest.brief()
        return dict(sorted(out.items()))

    def tree(self, revision: str, folder: str, recursive: bool, expand: bool) -> list[dict]:
        nodes = self.nodes(revision, expand, folder)
        if folder and not nodes:
            message = f"{folder} does not exist on {revision}"
            raise HubError(404, "EntryNotFound", message, X_Repo_Commit=self.commit(revision).oid)
        start = len(folder) + 1 if folder else 0
        return [node for path, node in nodes.items() if recursive or "/" not in path[start:]]


class Store:
    """All repositories of a hub; file contents lie on disk, named by their ETag."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.RLock()

    def create(self, kind: str, repo_id: str, private: bool = False) -> Repo:
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise HubError(409, None, "You already created this repo")
            repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
            attributes = self._add_regular(".gitattributes", GITATTRIBUTES.encode())
            self._record(repo, "main", {attributes.path: attributes}, "initial commit", "")
            return repo

    def open(self, entry: Entry) -> BinaryIO:
        return (self.root / entry.etag).open("rb")

    def read(self, repo: Repo, path: str, revision: str = "main") -> bytes:
        """The content of a file, for a test to compare with."""
        return (self.root / repo.entry(revision, path)[1].etag).read_bytes()

    def receive(self, repo: Repo, sha256: str, chunks: Iterable[bytes]) -> None:
        """Take in an LFS object, keeping it only if its content has the announced hash."""
        partial = self.root / f"{sha256}.{secrets.token_hex(4)}.part"
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise HubError(400, None, f"Content does not have the hash {sha256}")
            partial.replace(self.root / sha256)
        finally:
            partial.unlink(missing_ok=True)
        with self.lock:
            repo.lfs.add(sha256)

    def push(self, repo: Repo, branch: str, lines: Iterable[dict[str, Any]]) -> Commit:
        """Make a commit from the lines of a commit request."""
        with self.lock:
            if branch not in repo.branches:
                raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            head = repo.commit(branch)
            files, header = dict(head.files), {}
            for line in lines:
                key, value = line["key"], line["value"]
                path = value.get("path", "")
                if key == "header":
                    header = value
                elif key == "file":
                    content = value["content"]
                    is_base64 = value.get("encoding") == "base64"
                    data = base64.b64decode(content) if is_base64 else content.encode()
                    files[path] = self._add_regular(path, data)
                elif key == "lfsFile":
                    files[path] = self._add_lfs(repo, path, value["oid"])
                elif key in ("deletedFile", "deletedFolder"):
                    below = path.rstrip("/") + "/"
                    doomed = [p for p in files if p == path or p.startswith(below)]
                    if key == "deletedFile":
                        doomed = [p for p in doomed if p == path]
                    if not doomed:
                        raise HubError(404, "EntryNotFound", "A file with this name doesn't exist")
                    for name in doomed:
                        del files[name]
                else:
                    raise HubError(400, None, f"Unknown commit operation: {key}")
            if not head.oid.startswith(header.get("parentCommit") or ""):
                raise HubError(412, None, "A commit has happened since. Please refresh.")
            title, description = header.get("summary", ""), header.get("description", "")
            return self._record(repo, branch, files, title, description)

    def _add_regular(self, path: str, content: bytes) -> Entry:
        oid = git_oid(content)
        if not (self.root / oid).exists():
            (self.root / oid).write_bytes(content)
        return Entry(path, len(content), oid)

    def _add_lfs(self, repo: Repo, path: str, sha256: str) -> Entry:
        if sha256 not in repo.lfs:
            raise HubError(400, None, f"LFS object {sha256} of {path} was not uploaded")
        size = (self.root / sha256).stat().st_size
        return Entry(path, size, git_oid(lfs_pointer(sha256, size)), sha256)

    def _record(
        self, repo: Repo, branch: str, files: dict[str, Entry], title: str, description: str
    ) -> Commit:
        parent, date = repo.branches.get(branch), datetime.now(UTC)
        before = repo.commits[parent].files if parent else {}
        listing = sorted((path, entry.etag) for path, entry in files.items())
        identity = json.dumps([repo.id, parent, title, description, date.isoformat(), listing])
        oid = hashlib.sha1(identity.encode()).hexdigest()
        for path, entry in files.items():
            old = before.get(path)
            same = old is not None and old.etag == entry.etag
            files[path] = old if old and same else replace(entry, last_commit=oid)
        repo.commits[oid] = Commit(oid, title, description, date, parent, files)
        repo.branches[branch] = oid
        return repo.commits[oid]
