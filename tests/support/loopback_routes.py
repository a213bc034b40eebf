"""The routes of a loopback Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from loopback_http import CHUNK, BaseHandler, route
from loopback_store import LFS_SUFFIXES, HubError, Repo, timestamp

API = r"/api/(?P<type>models|datasets)/(?P<repo>[^/]+/[^/]+)"
GIT = r"/(?:(?P<type>datasets)/)?(?P<repo>[^/]+/[^/]+)"


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a Range header; None where there is no usable single range."""
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header or "")
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise HubError(416, None, "Range Not Satisfiable", Content_Range=f"bytes */{size}")
    return start, end


class Handler(BaseHandler):
    # --- who and what there is ---

    @route("GET", "/api/whoami-v2", access="token")
    def whoami(self) -> None:
        auth = {"accessToken": {"displayName": "loopback", "role": "write"}}
        user = {"type": "user", "name": self.server.hub.user, "orgs": [], "auth": auth}
        self._send_json(user)

    @route("GET", "/api/agent-harnesses", kind="other")
    def agent_harnesses(self) -> None:
        self._send_json({"standardEnvVars": [], "harnesses": {}})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        self._send_json({"errors": [], "warnings": []})

    @route("POST", "/api/repos/create", access="token")
    def create(self) -> None:
        hub, wanted = self.server.hub, self._json()
        kind = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or hub.user}/{wanted['name']}"
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        answer = {"id": repo_id, "name": repo_id, "private": private}
        answer["url"] = f"{hub.endpoint}/{_prefix(kind)}{repo_id}"
        try:
            hub.store.create(kind, repo_id, private)
        except HubError as error:
            # With `exist_ok` the client takes the URL from the refusal.
            self._send_json({**answer, "error": str(error)}, error.status)
        else:
            self._send_json(answer)

    @route("GET", API + r"(?:/revision/(?P<rev>[^/]+))?")
    def info(self, repo: Repo, rev: str = "main") -> None:
        commit = repo.commit(rev)
        siblings = []
        for entry in sorted(commit.files.values(), key=lambda entry: entry.path):
            sibling: dict[str, Any] = {"rfilename": entry.path}
            if self._flag("blobs"):
                sibling |= {"size": entry.size, "blobId": entry.oid}
                if entry.sha256:
                    lfs = {"sha256": entry.sha256, "size": entry.size}
                    sibling["lfs"] = {**lfs, "pointerSize": entry.pointer_size}
            siblings.append(sibling)
        dates = [timestamp(commit.date) for commit in (commit, repo.history(rev)[-1])]
        self._send_json(
            {
                "id": repo.id,
                "author": repo.id.split("/")[0],
                "sha": commit.oid,
                "lastModified": dates[0],
                "createdAt": dates[1],
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    @route("GET", API + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?")
    def tree(self, repo: Repo, rev: str, path: str = "") -> None:
        recursive, expand = self._flag("recursive"), self._flag("expand")
        self._send_json(repo.tree(rev, path.strip("/"), recursive, expand))

    @route("POST", API + r"/paths-info/(?P<rev>[^/]+)")
    def paths_info(self, repo: Repo, rev: str) -> None:
        body = b"".join(self.body).decode()
        form = json.loads(body) if body.startswith("{") else parse_qs(body)
        expand = form.get("expand") in (True, ["true"])
        nodes = repo.nodes(rev, expand)
        self._send_json([nodes[path] for path in form.get("paths", []) if path in nodes])

    @route("GET", API + r"/commits/(?P<rev>[^/]+)")
    def commits(self, repo: Repo, rev: str) -> None:
        authors = [{"user": self.server.hub.user}]
        history = repo.history(rev)
        self._send_json(
            [{**c.brief(), "message": c.description, "authors": authors} for c in history]
        )

    # --- refs ---

    @route("GET", API + "/refs")
    def refs(self, repo: Repo) -> None:
        def listed(refs: dict[str, str], space: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{space}/{name}", "targetCommit": oid}
                for name, oid in refs.items()
            ]

        branches, tags = listed(repo.branches, "heads"), listed(repo.tags, "tags")
        self._send_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    @route("POST", API + "/tag/(?P<rev>[^/]+)", access="write")
    def create_tag(self, repo: Repo, rev: str) -> None:
        self._create_ref(repo.tags, self._json()["tag"], repo.commit(rev).oid)

    @route("POST", API + "/branch/(?P<name>[^/]+)", access="write")
    def create_branch(self, repo: Repo, name: str) -> None:
        start = repo.commit(self._json().get("startingPoint") or "main")
        self._create_ref(repo.branches, name, start.oid)

    def _create_ref(self, refs: dict[str, str], name: str, oid: str) -> None:
        with self.server.hub.store.lock:
            if name in refs:
                raise HubError(409, None, f"Reference {name} exists already")
            refs[name] = oid
        self._send_json({"name": name, "targetCommit": oid}, 201)

    @route("DELETE", API + "/tag/(?P<name>[^/]+)", access="write")
    def delete_tag(self, repo: Repo, name: str) -> None:
        if repo.tags.pop(name, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid tag: {name}")
        self._send_json({})

    # --- uploads ---

    @route("POST", API + r"/preupload/(?P<rev>[^/]+)", access="write")
    def preupload(self, repo: Repo, rev: str) -> None:
        present, threshold = repo.commit(rev).files, self.server.hub.lfs_threshold
        answers = []
        for file in self._json()["files"]:
            path, size = file["path"], file["size"]
            lfs = size >= threshold or path.lower().endswith(LFS_SUFFIXES)
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular"}
            oid = present[path].etag if path in present else None
            answers.append({**answer, "shouldIgnore": False, "oid": oid})
        self._send_json({"files": answers})

    @route("POST", GIT + r"\.git/info/lfs/objects/batch", kind="lfs", access="write")
    def lfs_batch(self, repo: Repo) -> None:
        objects = []
        for wanted in self._json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repo.lfs:
                href = f"/lfs/{repo.kind}s/{repo.id}/{wanted['oid']}"
                base = self.server.hub.endpoint
                signed = f"{base}{href}?grant={self.server.hub.grant(href)}"
                verify = f"{base}/{_prefix(repo.kind)}{repo.id}.git/info/lfs/verify"
                answer["actions"] = {"upload": {"href": signed}, "verify": {"href": verify}}
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    @route(
        "PUT",
        "/lfs/(?P<type>models|datasets)/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})",
        kind="lfs",
        access="grant",
    )
    def lfs_put(self, repo: Repo, oid: str) -> None:
        self.server.hub.store.receive(repo, oid, self.body)
        self._send(200, 0, [], {"ETag": f'"{oid}"'})

    @route("POST", GIT + r"\.git/info/lfs/verify", kind="lfs", access="write")
    def lfs_verify(self, repo: Repo) -> None:
        if self._json()["oid"] not in repo.lfs:
            raise HubError(404, None, "Object does not exist")
        self._send_json({})

    @route("POST", API + r"/commit/(?P<rev>[^/]+)", access="write")
    def commit(self, repo: Repo, rev: str) -> None:
        hub = self.server.hub
        if self._flag("create_pr"):
            raise HubError(400, None, "Pull requests are not served here")
        lines = [json.loads(line) for line in b"".join(self.body).splitlines() if line.strip()]
        oid = hub.store.push(repo, rev, lines).oid
        url = f"{hub.endpoint}/{_prefix(repo.kind)}{repo.id}/commit/{oid}"
        self._send_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # --- downloads ---

    @route("GET HEAD", GIT + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", kind="resolve")
    def resolve(self, repo: Repo, rev: str, path: str) -> None:
        commit, entry = repo.entry(rev, path)
        headers = {
            "ETag": f'"{entry.etag}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if entry.sha256:
            headers |= {"X-Linked-Etag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size)}
        span = byte_range(self.call.range, entry.size) if self.command == "GET" else None
        start, end = span or (0, entry.size)
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        with self.server.hub.store.open(entry) as file:
            file.seek(start)
            self._send(206 if span else 200, end - start, _pieces(file), headers)


def _prefix(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data
