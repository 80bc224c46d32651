# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A small OCI registry for tests: it serves an OCI layout on 127.0.0.1 and fails as it is told.

    with serve(layout) as registry:
        skopeo copy --src-tls-verify=false docker://{registry.address}/os:1 …
        registry.faults = (Fault(kind=FaultKind.BAD_GATEWAY, on=On.BLOBS, times=2),)
        registry.agents(), registry.moved_bytes()

Read-only, plain HTTP, one repository. A guest reaches it through QEMU's user network as
`registry.guest_address`. The end points (OCI distribution-spec 1.1): `GET /v2/` says that this is a
registry; `/v2/NAME/tags/list`; `/v2/NAME/manifests/TAG-OR-DIGEST` and `/v2/NAME/blobs/DIGEST` with
GET and HEAD, blobs with `Range: bytes=N-` or `N-M`. Errors are `{"errors": [{"code", "message"}]}`.
With a fault that wants a token, `/v2/` and all below answer 401 and name `/token`, which gives one.

The layout is read at each request: a new tag, or one that leads elsewhere, is seen at once. All
threads end with the block, those that stall too.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bootc.errors import BootcError
from bootc.jsonutil import read_object
from bootc.oci.layout import REF_NAME
from bootc.oci.model import MANIFEST

_log = logging.getLogger(__name__)

HOST_OF_GUEST = "10.0.2.2"
"""Where QEMU's user network shows the host's loopback to a guest."""
_TOKEN = "a-token-of-the-test-registry"
USER, PASSWORD = "somebody", "secret:1"
_BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_PIECE = 1 << 16
_PATH = re.compile(
    r"/v2/(?P<name>[a-z0-9/._-]+)/(?P<kind>manifests|blobs)/(?P<what>[A-Za-z0-9_.:-]+)"
)
_DIGEST = re.compile(r"sha(256|512):[0-9a-f]{64,128}")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class FaultKind(StrEnum):
    """What goes wrong."""

    UNAUTHORIZED = "unauthorized"
    """401, and no token is given."""
    TOKEN = "token"
    """401 until a token is sent, which whoever asks for it gets: no error, but the longer way."""
    PASSWORD = "password"
    """401 until `USER` and `PASSWORD` are sent: no error either."""
    NOT_FOUND = "not-found"
    TOO_MANY = "too-many"
    """429 with `Retry-After: 1`."""
    BAD_GATEWAY = "bad-gateway"
    STALL = "stall"
    """After `at` bytes nothing comes any more, and the connection stays."""
    TRUNCATE = "truncate"
    """After `at` bytes the connection is closed."""
    WRONG_CONTENT = "wrong-content"
    """The byte at `at` (at most the last one) is another one."""
    SWAP = "swap"
    """After a manifest was got by a tag, all tags lead to the manifest `digest`."""


class On(StrEnum):
    """Which requests a fault meets."""

    ALL = "all"
    MANIFESTS = "manifests"
    BLOBS = "blobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, for the first `times` requests that it meets (None: always).

    `digest` narrows it to one blob or manifest; for SWAP it is the new manifest.
    """

    kind: FaultKind
    on: On = On.ALL
    at: int = 0
    digest: str | None = None
    times: int | None = None


_ASKING = (FaultKind.TOKEN, FaultKind.PASSWORD)
"""What is no fault for whom is known."""
_REFUSALS = {
    FaultKind.UNAUTHORIZED: (401, "UNAUTHORIZED", "authentication required"),
    FaultKind.NOT_FOUND: (404, "NAME_UNKNOWN", "repository name not known to registry"),
    FaultKind.TOO_MANY: (429, "TOOMANYREQUESTS", "too many requests"),
    FaultKind.BAD_GATEWAY: (502, "UNKNOWN", "bad gateway"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that was answered: `sent` are the bytes of its body that left us."""

    method: str
    path: str
    agent: str
    status: int
    sent: int
    start: int = 0

    @property
    def is_blob(self) -> bool:
        return "/blobs/" in self.path


class Registry:
    """The registry that `serve` runs. `faults` can be set at any time."""

    def __init__(self, layout: Path, name: str) -> None:
        self.layout = layout
        self.name = name
        self.port = 0
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._faults: tuple[Fault, ...] = ()
        self._met: list[int] = []
        self._requests: list[Request] = []
        self._swapped: str | None = None

    @property
    def address(self) -> str:
        """HOST:PORT for programs on this machine."""
        return f"127.0.0.1:{self.port}"

    @property
    def guest_address(self) -> str:
        """HOST:PORT for a guest of QEMU with user networking."""
        return f"{HOST_OF_GUEST}:{self.port}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._faults

    @faults.setter
    def faults(self, faults: tuple[Fault, ...]) -> None:
        with self._lock:
            self._faults, self._met, self._swapped = faults, [0] * len(faults), None

    @property
    def met(self) -> tuple[int, ...]:
        """How many requests each of the faults has met so far."""
        with self._lock:
            return tuple(self._met)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All that was asked so far, in the order of the ends of the answers."""
        with self._lock:
            return tuple(self._requests)

    def agents(self) -> set[str]:
        """The user agents that were seen."""
        return {request.agent for request in self.requests}

    def moved_bytes(self) -> int:
        """The bytes of blobs that were sent."""
        return sum(one.sent for one in self.requests if one.is_blob and one.status < 300)

    def forget(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._requests.clear()

    def note(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)
        _log.debug("registry: %s", request)

    def meet(self, on: On, digest: str | None, *, token: bool) -> list[Fault]:
        """The faults that a request meets; counts it for each of them."""
        met = []
        with self._lock:
            for number, fault in enumerate(self._faults):
                if fault.kind in _ASKING and token:
                    continue
                if fault.on not in (On.ALL, on):
                    continue
                wanted = None if fault.kind is FaultKind.SWAP else fault.digest
                if wanted not in (None, digest):
                    continue
                if fault.times is not None and self._met[number] >= fault.times:
                    continue
                self._met[number] += 1
                met.append(fault)
        return met

    def swap(self, digest: str | None) -> None:
        with self._lock:
            self._swapped = digest

    def tags(self) -> dict[str, str]:
        """tag → manifest digest, as the layout's index says now (or as a SWAP made it)."""
        source = self.layout / "index.json"
        index = read_object(source.read_bytes(), str(source))
        found = {}
        for item in index.tables("manifests"):
            annotations = item.optional_table("annotations")
            name = annotations.optional_text(REF_NAME) if annotations is not None else None
            if name is not None:
                found[name] = item.text("digest")
        with self._lock:
            swapped = self._swapped
        return found if swapped is None else dict.fromkeys(found, swapped)

    def find_blob(self, digest: str) -> Path | None:
        if not _DIGEST.fullmatch(digest):
            return None
        path = self.layout / "blobs" / digest.replace(":", "/")
        return path if path.is_file() else None


@contextmanager
def serve(layout: Path, *, name: str = "os") -> Iterator[Registry]:
    """Serve the images of an OCI layout as the repository `name`, for as long as the block runs."""
    if not (layout / "index.json").is_file():
        raise BootcError(f"{layout} is no OCI layout: it has no index.json")
    registry = Registry(layout, name)
    with _Server(registry) as server:
        registry.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, name="registry", args=(0.05,))
        thread.start()
        try:
            yield registry
        finally:
            registry.ending.set()
            server.shutdown()
            thread.join()
            server.hang_up()


class _Server(ThreadingHTTPServer):
    """Closing it waits for the threads of its connections, which `hang_up` ends."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Wake the threads that wait for another request on a connection that is kept."""
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("registry: %s went away", client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._status, self._sent, self._start = 0, 0, 0
        try:
            self._answer()
        finally:
            self.server.registry.note(
                Request(
                    method=self.command,
                    path=self.path,
                    agent=self.headers.get("User-Agent", ""),
                    status=self._status,
                    sent=self._sent,
                    start=self._start,
                )
            )

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        registry = self.server.registry
        path = self.path.partition("?")[0]
        token = self.headers.get("Authorization") in (f"Bearer {_TOKEN}", f"Basic {_BASIC}")
        match = _PATH.fullmatch(path)
        if path == "/token":
            self._document({"token": _TOKEN, "access_token": _TOKEN, "expires_in": 300})
        elif path == "/v2/":
            # Clients ask it before everything else, so only the way to a token is told here.
            wanted = [fault.kind for fault in registry.faults if fault.kind in _ASKING]
            if wanted and not token:
                self._refuse(wanted[0])
            else:
                self._document({})
        elif match is not None and match["name"] == registry.name:
            self._send_named(On(match["kind"]), match["what"], token=token)
        elif path == f"/v2/{registry.name}/tags/list":
            self._document({"name": registry.name, "tags": sorted(registry.tags())})
        else:
            self._error(404, "NAME_UNKNOWN", "repository name not known to registry")

    def _send_named(self, on: On, what: str, *, token: bool) -> None:
        """A manifest by tag or digest, or a blob, with the faults that it meets."""
        registry = self.server.registry
        by_tag = ":" not in what
        digest = registry.tags().get(what) if by_tag else what
        faults = registry.meet(on, digest, token=token)
        for fault in faults:
            if fault.kind in _REFUSALS or fault.kind in _ASKING:
                self._refuse(fault.kind)
                return
        found = None if digest is None else registry.find_blob(digest)
        if digest is None or found is None:
            code = "MANIFEST_UNKNOWN" if on is On.MANIFESTS else "BLOB_UNKNOWN"
            self._error(404, code, "unknown to registry")
            return
        media = "application/octet-stream"
        if on is On.MANIFESTS:
            media = read_object(found.read_bytes(), digest).optional_text("mediaType") or MANIFEST
        self._send_file(found, digest, media, faults)
        if by_tag and self.command == "GET":
            for fault in faults:
                if fault.kind is FaultKind.SWAP:
                    registry.swap(fault.digest)

    def _send_file(self, path: Path, digest: str, media: str, faults: list[Fault]) -> None:
        size = path.stat().st_size
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = 0, size
        if match is not None:
            start = int(match[1])
            end = min(size, int(match[2]) + 1) if match[2] else size
            if start >= end:
                self._error(416, "UNKNOWN", "no such bytes")
                return
        self._start = start
        self._head(206 if match is not None else 200, media, end - start)
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Accept-Ranges", "bytes")
        if match is not None:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        wrong = {
            min(fault.at, size - 1) for fault in faults if fault.kind is FaultKind.WRONG_CONTENT
        }
        stop = min(
            (fault for fault in faults if fault.kind in (FaultKind.STALL, FaultKind.TRUNCATE)),
            key=lambda fault: fault.at,
            default=None,
        )
        self._send_bytes(path, start, end if stop is None else max(start, min(stop.at, end)), wrong)
        if stop is not None and stop.at < end:
            self.close_connection = True
            if stop.kind is FaultKind.STALL:
                self.server.registry.ending.wait()

    def _send_bytes(self, path: Path, start: int, end: int, wrong: set[int]) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while start < end and not self.server.registry.ending.is_set():
                piece = bytearray(file.read(min(_PIECE, end - start)))
                for place in wrong:
                    if start <= place < start + len(piece):
                        piece[place - start] ^= 0xFF
                self.wfile.write(piece)
                self._sent += len(piece)
                start += len(piece)
        self.wfile.flush()

    def _refuse(self, kind: FaultKind) -> None:
        status, code, message = _REFUSALS[FaultKind.UNAUTHORIZED if kind in _ASKING else kind]
        extra = {}
        if kind is FaultKind.TOKEN:
            where = self.headers.get("Host", self.server.registry.address)
            extra["WWW-Authenticate"] = f'Bearer realm="http://{where}/token",service="test"'
        elif kind in (FaultKind.UNAUTHORIZED, FaultKind.PASSWORD):
            extra["WWW-Authenticate"] = 'Basic realm="test"'
        elif kind is FaultKind.TOO_MANY:
            extra["Retry-After"] = "1"
        self._error(status, code, message, extra)

    def _error(
        self, status: int, code: str, message: str, extra: dict[str, str] | None = None
    ) -> None:
        self._document({"errors": [{"code": code, "message": message}]}, status, extra)

    def _document(
        self, value: object, status: int = 200, extra: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(value).encode()
        self._head(status, "application/json", len(data))
        for key, text in (extra or {}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self._sent += len(data)

    def _head(self, status: int, media: str, size: int) -> None:
        self._status = status
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(size))
