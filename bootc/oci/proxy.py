# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images from registries and container storage, through `skopeo experimental-image-proxy`.

Its protocol: JSON over a SOCK_SEQPACKET socket, `{"method", "args"}` there, `{"success", "value",
"pipeid", "error"}` back, with one descriptor of a pipe when there is data to read. The data end
only when `FinishPipe` has been asked for, and that is answered only when the data have been read:
so it is sent before reading and its answer is received after. `Shutdown` gets no answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import BinaryIO, Self

from bootc import log, process
from bootc.errors import BootcError
from bootc.jsonutil import Reader, read_object
from bootc.oci.model import Descriptor, read_manifest, verify_digest

_REPLY_MAX = 1 << 16
_DOCUMENT_MAX = 64 << 20
_TIMEOUT = 600.0


class ProxySource:
    """An image that skopeo reads for us; `with` starts and ends skopeo."""

    manifest: bytes
    manifest_digest: str
    config: bytes
    config_digest: str

    def __init__(self, reference: str, options: Sequence[str] = ()) -> None:
        """`reference` in skopeo's spelling; `options` for skopeo, such as `--authfile=…`."""
        self._reference = reference
        self._options = tuple(options)
        self._socket: socket.socket | None = None
        self._image = 0
        self._layers: dict[str, Descriptor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        process.need_program("skopeo", hint="install skopeo, or use an oci: layout")
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(ours)
            with theirs:
                argv = ["skopeo", "experimental-image-proxy", "--sockfd", "0", *self._options]
                stack.enter_context(process.running(argv, stdin=theirs.fileno()))
            self._socket = ours
            ours.settimeout(_TIMEOUT)
            stack.callback(self._shutdown)
            self._call("Initialize")
            with log.step(f"open {self._reference}"):
                self._open_image()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _shutdown(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(b'{"method":"Shutdown","args":[]}')
            self._socket = None

    def _open_image(self) -> None:
        value = self._call("OpenImage", self._reference).value.get("value")
        if not isinstance(value, int):
            raise BootcError(f"skopeo gave no image for {self._reference}")
        self._image = value
        reply, data = self._read("GetManifest", value)
        self.manifest = data
        self.manifest_digest = _manifest_digest(reply.text("value"), data)
        manifest = read_manifest(data, f"{self._reference}: manifest")
        self._layers = {layer.digest: layer for layer in manifest.layers}
        config = manifest.config
        self.config_digest = config.digest
        _, self.config = self._read("GetBlob", value, config.digest, config.size)
        verify_digest(self.config, config.digest, f"{self._reference}: config")

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[BinaryIO]:
        layer = self._layers[digest]
        with self._pipe("GetBlob", self._image, digest, layer.size) as (_, pipe):
            yield pipe

    def _read(self, method: str, *args: str | int) -> tuple[Reader, bytes]:
        with self._pipe(method, *args) as (reply, pipe):
            pieces: list[bytes] = []
            size = 0
            while piece := pipe.read(1 << 20):
                pieces.append(piece)
                size += len(piece)
                if size > _DOCUMENT_MAX:
                    raise BootcError(f"{self._reference}: the answer to {method} is too large")
        return reply, b"".join(pieces)

    @contextmanager
    def _pipe(self, method: str, *args: str | int) -> Iterator[tuple[Reader, BinaryIO]]:
        self._send(method, *args)
        reply, fds = self._receive(f"{method} of {self._reference}")
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise BootcError(f"skopeo's answer to {method} has {len(fds)} pipes, expected one")
        ended = False
        try:
            with os.fdopen(fds[0], "rb", buffering=0) as pipe:
                self._send("FinishPipe", reply.integer("pipeid"))
                try:
                    yield reply, pipe
                except Exception:
                    ended = not pipe.read(1)
                    raise
                ended = not pipe.read(1)
        finally:
            # If the data ended before we did, skopeo's complaint is the reason for whatever we
            # stumbled over. If we gave up half-way, it complains about that, which is no news.
            try:
                self._receive(f"{method} of {self._reference}")
            except BootcError:
                if ended:
                    raise

    def _call(self, method: str, *args: str | int) -> Reader:
        self._send(method, *args)
        reply, fds = self._receive(f"{method} of {self._reference}")
        for fd in fds:
            os.close(fd)
        return reply

    def _send(self, method: str, *args: str | int) -> None:
        if self._socket is None:
            raise BootcError(f"{self._reference} is not open")
        try:
            self._socket.send(json.dumps({"method": method, "args": list(args)}).encode())
        except OSError as error:
            raise BootcError(f"skopeo does not take {method}: {error}") from error

    def _receive(self, what: str) -> tuple[Reader, list[int]]:
        if self._socket is None:
            raise BootcError(f"{self._reference} is not open")
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _REPLY_MAX, 4)
        except TimeoutError as error:
            raise BootcError(f"no answer from skopeo to {what} after {_TIMEOUT:.0f} s") from error
        except OSError as error:
            raise BootcError(f"skopeo ended during {what}: {error}") from error
        try:
            if not data:
                raise BootcError(f"skopeo ended during {what}")
            reply = read_object(data, "skopeo")
            if not reply.boolean("success"):
                said = reply.optional_text("error") or "no reason given"
                raise BootcError(f"skopeo: {what}: {said}")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return reply, list(fds)


def _manifest_digest(digest: str, data: bytes) -> str:
    """The digest of the manifest as we store it.

    skopeo hands over an OCI manifest; for an image in Docker's format that is a conversion, and
    then the digest it names (the original's, which it has verified) is not that of these bytes.
    """
    try:
        verify_digest(data, digest, "manifest")
    except (BootcError, ValueError):
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    return digest
