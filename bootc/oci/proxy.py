# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images from registries and container storage, through `skopeo experimental-image-proxy`.

Its protocol: JSON over a SOCK_SEQPACKET socket, `{"method", "args"}` there, `{"success", "value",
"pipeid", "error"}` back, with one descriptor of a pipe when there is data to read. The data end
only when `FinishPipe` has been asked for, and that is answered only when the data have been read:
so it is sent before reading and its answer is received after. `Shutdown` gets no answer.

One skopeo answers one request after the other. So each blob that is open has a skopeo of its own;
those that are done with are used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import BinaryIO, Self, cast

from bootc import log, process
from bootc.errors import BootcError
from bootc.jsonutil import Reader, read_object
from bootc.oci.model import Descriptor, read_manifest, verify_digest
from bootc.records import dataclass

_log = logging.getLogger(__name__)
_REPLY_MAX = 1 << 16
_DOCUMENT_MAX = 64 << 20
_SLICE_MS = 250
_REMARK = 15.0
_STREAMED = "docker://"
"""What skopeo reads without files. From other places (containers-storage, archives) it makes a file
of each layer, and its proxy (1.9) leaves them there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """How skopeo talks to a registry. `user_agent` needs skopeo 1.19 or newer; `policy` is the
    path of a containers-policy.json(5), skopeo's own default if None. After `silence` seconds
    without an answer or data a pull is given up; skopeo's own retries (429) take up to a minute.
    """

    authfile: str | None = None
    insecure: bool = False
    user_agent: str | None = None
    policy: str | None = None
    silence: float = 180.0

    def to_argv(self) -> list[str]:
        """The command that serves on its standard input."""
        argv = ["skopeo"]
        if self.user_agent is not None:
            argv.append(f"--user-agent-prefix={self.user_agent}")
        if self.policy is not None:
            argv.append(f"--policy={self.policy}")
        argv += ["experimental-image-proxy", "--sockfd", "0"]
        if self.authfile is not None:
            argv.append(f"--authfile={self.authfile}")
        if self.insecure:
            argv.append("--tls-verify=false")
        return argv


class ProxySource:
    """An image that skopeo reads for us; `with` starts and ends skopeo."""

    manifest: bytes
    manifest_digest: str
    config: bytes
    config_digest: str

    def __init__(self, reference: str, options: ProxyOptions | None = None) -> None:
        """`reference` in skopeo's spelling."""
        self._reference = reference
        options = options or ProxyOptions()
        self._argv = options.to_argv()
        self._layers: dict[str, Descriptor] = {}
        self._cancelled = threading.Event()
        self._patience = _Patience(reference, options.silence, self._cancelled)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        process.need_program("skopeo", hint="install skopeo, or use an oci: layout")
        with ExitStack() as stack:
            self._stack = stack
            if not self._reference.startswith(_STREAMED):
                self._argv.insert(1, f"--tmpdir={stack.enter_context(_scratch())}")
            with log.step(f"open {self._reference}"):
                first = self._connect()
                self._read_documents(first)
            self._idle.append(first)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._idle.clear()
        self._stack.close()

    def cancel(self) -> None:
        self._cancelled.set()

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[BinaryIO]:
        layer = self._layers[digest]
        with self._lock:
            connection = self._idle.pop() if self._idle else self._connect()
        with connection.pipe("GetBlob", connection.image, digest, layer.size) as (_, pipe):
            yield pipe
        # One that failed in the middle is not used again.
        with self._lock:
            self._idle.append(connection)

    def _connect(self) -> _Connection:
        """Start a skopeo, which lives as long as this source."""
        return self._stack.enter_context(_connected(self._reference, self._argv, self._patience))

    def _read_documents(self, connection: _Connection) -> None:
        image = connection.image
        reply, data = connection.read("GetManifest", image)
        self.manifest = data
        self.manifest_digest = _manifest_digest(reply.text("value"), data)
        manifest = read_manifest(data, f"{self._reference}: manifest")
        self._layers = {layer.digest: layer for layer in manifest.layers}
        config = manifest.config
        self.config_digest = config.digest
        _, self.config = connection.read("GetBlob", image, config.digest, config.size)
        verify_digest(self.config, config.digest, f"{self._reference}: config")


@dataclass(frozen=True, slots=True)
class _Patience:
    """Waits for skopeo: not in silence, not for ever, and not after the pull was given up."""

    reference: str
    silence: float
    cancelled: threading.Event

    def wait(self, ready: select.poll, what: str) -> None:
        """Return when `ready` has something to read; `what` is expected."""
        began = said = time.monotonic()
        while not ready.poll(_SLICE_MS):
            now = time.monotonic()
            if self.cancelled.is_set():
                raise BootcError(f"the pull of {self.reference} was given up")
            if now - began > self.silence:
                raise BootcError(
                    f"no {what} of {self.reference} from skopeo for {self.silence:.0f} s",
                    hint="check the network and try again: layers that are complete are kept",
                )
            if now - said > min(_REMARK, self.silence / 2):
                said = now
                _log.warning(
                    "no %s of %s for %.0f s; given up after %.0f s",
                    what,
                    self.reference,
                    now - began,
                    self.silence,
                )


class _PipeReader(io.RawIOBase):
    """Reads a pipe with patience."""

    def __init__(self, fd: int, patience: _Patience) -> None:
        super().__init__()
        self._fd = fd
        self._patience = patience
        self._ready = _readable(fd)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        self._patience.wait(self._ready, "data")
        return os.read(self._fd, size if size > 0 else 1 << 20)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _readable(fd: int) -> select.poll:
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    return ready


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for skopeo's files, in TMPDIR or, as skopeo has it, in /var/tmp."""
    place = os.environ.get("TMPDIR", "/var/tmp")
    try:
        folder = tempfile.TemporaryDirectory(prefix="bootc-skopeo-", dir=place)
    except OSError as error:
        raise BootcError(
            f"skopeo has no place for its files: {place}: {error.strerror}",
            hint="set TMPDIR to a folder with room for a layer",
        ) from error
    with folder as path:
        yield path


@contextmanager
def _connected(reference: str, argv: Sequence[str], patience: _Patience) -> Iterator[_Connection]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, ExitStack() as stack:
            stack.enter_context(process.running(argv, stdin=theirs.fileno()))
            kept = stack.pop_all()
        with kept:
            connection = _Connection(ours, reference, patience)
            try:
                connection.open()
                yield connection
            finally:
                with contextlib.suppress(OSError):
                    ours.send(b'{"method":"Shutdown","args":[]}')


class _Connection:
    """The conversation with one skopeo; `image` is its number of our image."""

    def __init__(self, channel: socket.socket, reference: str, patience: _Patience) -> None:
        self.image = 0
        self._socket = channel
        self._reference = reference
        self._patience = patience
        self._ready = _readable(channel.fileno())

    def open(self) -> None:
        self._call("Initialize")
        value = self._call("OpenImage", self._reference).value.get("value")
        if not isinstance(value, int):
            raise BootcError(f"skopeo gave no image for {self._reference}")
        self.image = value

    def read(self, method: str, *args: str | int) -> tuple[Reader, bytes]:
        with self.pipe(method, *args) as (reply, pipe):
            pieces: list[bytes] = []
            size = 0
            while piece := pipe.read(1 << 20):
                pieces.append(piece)
                size += len(piece)
                if size > _DOCUMENT_MAX:
                    raise BootcError(f"{self._reference}: the answer to {method} is too large")
        return reply, b"".join(pieces)

    @contextmanager
    def pipe(self, method: str, *args: str | int) -> Iterator[tuple[Reader, BinaryIO]]:
        self._send(method, *args)
        reply, fds = self._receive(f"{method} of {self._reference}")
        if len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise BootcError(f"skopeo's answer to {method} has {len(fds)} pipes, expected one")
        ended = False
        try:
            with _PipeReader(fds[0], self._patience) as reader:
                pipe = cast(BinaryIO, reader)
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
            if not self._patience.cancelled.is_set():
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
        try:
            self._socket.send(json.dumps({"method": method, "args": list(args)}).encode())
        except OSError as error:
            raise BootcError(f"skopeo does not take {method}: {error}") from error

    def _receive(self, what: str) -> tuple[Reader, list[int]]:
        self._patience.wait(self._ready, f"answer to {what.partition(' ')[0]}")
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _REPLY_MAX, 4)
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
