"""How a loopback Hub speaks HTTP: connections, access, bodies, faults and errors."""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import socketserver
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_store import HubError

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

CHUNK = 1 << 17


@dataclass
class Call:
    """One request as the server saw it; `kind` is "resolve", "lfs", "api" or "other"."""

    method: str
    path: str
    range: str | None = None
    kind: str = "api"
    repo: str = ""
    file: str = ""
    status: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    fault: str = ""


@dataclass(frozen=True)
class Route:
    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    kind: str
    access: str
    answer: Callable[..., None]


ROUTES: list[Route] = []


def route(methods: str, pattern: str, kind: str = "api", access: str = "read") -> Callable:
    """Register a handler method; `access` is "read", "write", "token" or "grant" (a signed URL)."""

    def register(answer: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append(Route(tuple(methods.split()), re.compile(pattern), kind, access, answer))
        return answer

    return register


class BaseHandler(BaseHTTPRequestHandler):
    """Requests to routes: faults, access, bodies in and out, errors."""

    protocol_version = "HTTP/1.1"
    # Headers and body leave in separate writes; with Nagle's algorithm the second one waits for
    # the delayed acknowledgement of the first on every keep-alive request.
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr clean: `LoopbackHub.requests` has the log."""

    def serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.call = Call(self.command, unquote(url.path), self.headers.get("Range"))
        self.body = self._chunks()
        found: Route | None = None
        groups: dict[str, str] = {}
        for candidate in ROUTES:
            match = candidate.pattern.fullmatch(url.path)
            if match and self.command in candidate.methods:
                found = candidate
                groups = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                break
        if found:
            self.call.kind, self.call.repo = found.kind, groups.get("repo", "")
            self.call.file = groups.get("path", "") if found.kind == "resolve" else ""
        hub.log(self.call)
        try:
            fault = hub.faults.before(self.call)
            if fault == "reset":
                return self._reset()
            if fault == "loop":
                return self._send(307, 0, [], {"Location": self.path})
            if fault:
                after = hub.faults.retry_after
                headers = {} if after is None else {"Retry_After": str(after)}
                if fault == "429":
                    raise HubError(429, None, "Too Many Requests", **headers)
                raise HubError(503, None, "Service Unavailable", **headers)
            if found is None:
                raise HubError(404, None, f"No route {self.command} {url.path}")
            self._authorize(found.access, groups)
            found.answer(self, **groups)
        except HubError as error:
            self._send_error(error)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            # What is left of the request's body would be taken for the next request.
            with suppress(OSError, ValueError):
                for _ in self.body:
                    pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _authorize(self, access: str, groups: dict[str, Any]) -> None:
        """Check the token and put the repository in place of its name."""
        hub = self.server.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        if "repo" in groups:
            kind = groups.pop("type", "models")
            repo = hub.store.repos.get((kind.removesuffix("s"), groups["repo"]))
            if access == "grant":
                granted = hmac.compare_digest(
                    self.query.get("grant", ""), hub.grant(urlsplit(self.path).path)
                )
                if repo is None or not granted:
                    raise HubError(403, None, "Forbidden")
            elif repo is None or (repo.private and not token):
                if not token:
                    raise HubError(401, "RepoNotFound", "Invalid username or password.")
                raise HubError(404, "RepoNotFound", "Repository not found")
            groups["repo"] = repo
        if access in ("write", "token") and not token:
            raise HubError(401, None, "Invalid username or password.")

    # --- bodies ---

    def _chunks(self) -> Iterator[bytes]:
        """The body of the request, piece by piece."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield from self._read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            yield from self._read(int(self.headers.get("Content-Length") or 0))

    def _read(self, size: int) -> Iterator[bytes]:
        while size > 0:
            data = self.rfile.read(min(size, CHUNK))
            if not data:
                raise ConnectionAbortedError("The client stopped within a request")
            size -= len(data)
            self.call.bytes_received += len(data)
            yield data

    def _json(self) -> dict[str, Any]:
        try:
            return json.loads(b"".join(self.body) or b"{}")
        except ValueError:
            raise HubError(400, None, "The body is not JSON") from None

    def _send(
        self, status: int, length: int, chunks: Iterable[bytes], headers: dict[str, str]
    ) -> None:
        call = self.call
        call.status = status
        faults = self.server.hub.faults
        if status < 300 and faults.answer(call):
            self._reset()
            return
        spoilable = self.command == "GET" and status < 300 and length > 0
        fault = faults.body(call) if spoilable else ""
        if fault == "short":
            length //= 2
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = length
        if fault in ("cut", "stall"):
            left //= 2
            self.close_connection = True
        for chunk in chunks:
            if left <= 0:
                break
            data = chunk[:left]
            left -= len(data)
            # Counted first: the client may have the last byte, and ask, before write returns.
            call.bytes_sent += len(data)
            try:
                self.wfile.write(data)
            except OSError:
                call.bytes_sent -= len(data)
                raise
        if fault == "stall":
            self.wfile.flush()
            time.sleep(faults.stalled)

    def _send_json(self, payload: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(payload).encode()
        self._send(status, len(body), [body], {"Content-Type": "application/json", **headers})

    def _send_error(self, error: HubError) -> None:
        # Paths are quoted in messages, and a header cannot hold every character.
        headers = {"X-Error-Message": ascii(str(error))[1:-1], **error.headers}
        if error.code:
            headers["X-Error-Code"] = error.code
        with suppress(OSError):
            self._send_json({"error": str(error)}, error.status, **headers)

    def _reset(self) -> None:
        """Close so that the client gets a reset: without lingering, and without a FIN before it."""
        self.close_connection = True
        self.body = iter(())
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, hub: LoopbackHub, handler: type[BaseHandler]) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)

    def server_bind(self) -> None:
        # HTTPServer looks its own name up in the DNS here, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, and hang up on the clients that keep their connection."""
        super().server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
