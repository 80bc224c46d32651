# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A registry in the guest: it serves one OCI layout on 127.0.0.1, without TLS.

What `stall` names, the digest of a blob, is sent by half; then nothing comes until `stall` is None
again or the registry ends.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ADDRESS = ("127.0.0.1", 5000)
REFERENCE = f"{ADDRESS[0]}:{ADDRESS[1]}/os:latest"
SETTINGS = "/etc/containers/registries.conf.d/60-booted.conf"


class Registry:
    """What is served, and who asked for what: `blobs` are (digest, user agent)."""

    def __init__(self, layout: str) -> None:
        self.layout = Path(layout)
        self.blobs: list[tuple[str, str]] = []
        self.stall: str | None = None
        self.stalled = threading.Event()
        self.go_on = threading.Event()

    def find(self, what: str) -> "tuple[str, str, Path] | None":
        """(media type, digest, file) of a blob or, by tag or digest, of the manifest."""
        [entry] = json.loads((self.layout / "index.json").read_text())["manifests"]
        if what in ("latest", entry["digest"]):
            what = entry["digest"]
        path = self.layout / "blobs" / what.replace(":", "/")
        kind = entry["mediaType"] if what == entry["digest"] else "application/octet-stream"
        return (kind, what, path) if what.startswith("sha256:") and path.is_file() else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(200, "application/json", b"{}")
            return
        folder, _, what = self.path.rpartition("/")
        found = self.registry.find(what) if folder.startswith("/v2/os/") else None
        if found is None:
            text = json.dumps({"errors": [{"code": "NOT_FOUND", "message": self.path}]})
            self._answer(404, "application/json", text.encode())
            return
        kind, digest, path = found
        data = path.read_bytes()
        if self.command == "GET" and folder.endswith("/blobs"):
            self.registry.blobs.append((digest, self.headers.get("User-Agent", "")))
        self._answer(200, kind, data, digest)

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, data: bytes, digest: "str | None" = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if digest is not None:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "HEAD":
            return
        if digest is not None and digest == self.registry.stall:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.registry.stalled.set()
            self.registry.go_on.wait()
            self.close_connection = True
            return
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        # Who tries TLS first sends bytes that are no text.
        print(f"registry: {(format % args)[:200]!r}", flush=True)


@contextmanager
def serve(layout: str) -> "Iterator[Registry]":
    """The registry, as long as the block; podman and skopeo reach it without TLS."""
    registry = Registry(layout)
    handler = type("Bound", (Handler,), {"registry": registry})
    with open(SETTINGS, "w", encoding="utf-8") as file:
        host, port = ADDRESS
        file.write(f'[[registry]]\nlocation = "{host}:{port}"\ninsecure = true\n')
    with ThreadingHTTPServer(ADDRESS, handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.1,))
        thread.start()
        try:
            yield registry
        finally:
            registry.go_on.set()
            server.shutdown()
            thread.join()


def blobs_of(layout: str) -> "list[str]":
    """The digests of the layers of the image in the layout."""
    [entry] = json.loads((Path(layout) / "index.json").read_text())["manifests"]
    path = Path(layout) / "blobs" / entry["digest"].replace(":", "/")
    return [layer["digest"] for layer in json.loads(path.read_text())["layers"]]
