# SPDX-License-Identifier: Apache-2.0 OR MIT
"""HTTP/1.1 over a unix socket, as far as podman's API needs it.

    POST PATH HTTP/1.1
    Host: d
    Content-Length: 0

The answer's body is read as lines (a JSON document each, "NDJSON"), whether it comes chunked or
with a length. Nothing is trusted: a line has at most `LINE_MAX` bytes, the body of a refusal at
most `REFUSAL_MAX`, and each line must come within a time that the caller says.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from bootc.errors import BootcError, FormatError

LINE_MAX = 1 << 20
REFUSAL_MAX = 1 << 16
SOCKET_PATH_MAX = 107
"""Bytes that fit in a sockaddr_un, before its zero byte."""
_PIECE = 1 << 16
_CONNECT_TIMEOUT = 10.0

Patience = Callable[[], float]
"""How many seconds the next line may take."""


def check_socket_path(path: str) -> None:
    """Refuse a path that the kernel would not take."""
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_MAX:
        raise BootcError(
            f"the path of podman's socket is {size} bytes long, at most {SOCKET_PATH_MAX} can be "
            f"used: {path}",
            hint="its folder needs a shorter path; /run/bootc is the usual one",
        )


def connect(path: str, *, timeout: float = _CONNECT_TIMEOUT) -> socket.socket:
    """A connection to the socket at `path`. Raises `OSError`; `BootcError` for too long a path."""
    check_socket_path(path)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(timeout)
        channel.connect(path)
    except BaseException:
        channel.close()
        raise
    return channel


class _Connection(http.client.HTTPConnection):
    def __init__(self, channel: socket.socket) -> None:
        super().__init__("d")
        self.sock = channel

    def connect(self) -> None:
        """It is connected, once and for all."""
        raise ConnectionError("the connection was closed")


class Answer:
    """An answer whose head was read: `status`, and the body's lines by `lines`."""

    def __init__(self, channel: socket.socket, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.reason = response.reason
        self._channel = channel
        self._response = response

    def refusal(self) -> bytes:
        """The body, or its beginning, of an answer that says no; empty when it doesn't come."""
        try:
            return self._response.read(REFUSAL_MAX)
        except (OSError, http.client.HTTPException):
            return b""

    def lines(self, what: str, patience: Patience) -> Iterator[bytes]:
        """Each line of the body that isn't empty; one without an end is the last.

        `what` is what the answer is called in errors. Raises `BootcError` when the connection is
        cut or nothing comes for too long, `FormatError` for a line that is too long.
        """
        buffer = bytearray()
        began = time.monotonic()
        while True:
            piece = self._piece(what, began, patience())
            if not piece:
                break
            buffer += piece
            if b"\n" in piece:
                *whole, rest = bytes(buffer).split(b"\n")
                buffer = bytearray(rest)
                for line in whole:
                    if len(line) > LINE_MAX:
                        raise _too_long(what)
                    if line.strip():
                        yield line
                began = time.monotonic()
            if len(buffer) > LINE_MAX:
                raise _too_long(what)
        if buffer.strip():
            yield bytes(buffer)

    def _piece(self, what: str, began: float, patience: float) -> bytes:
        left = began + patience - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            return self._response.read1(_PIECE)
        except TimeoutError as error:
            raise BootcError(
                f"{what}: nothing was heard for {patience:.0f} s",
                hint="check the network, and try again: layers that are complete are kept",
            ) from error
        except http.client.IncompleteRead as error:
            raise _cut(what) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BootcError(f"{what}: the answer cannot be read: {error}") from error


def _too_long(what: str) -> FormatError:
    return FormatError(what, None, f"a line of the answer has more than {LINE_MAX} bytes")


def _cut(what: str) -> BootcError:
    return BootcError(
        f"{what}: the answer ends in the middle",
        hint="`dmesg | tail` tells when the kernel ended podman; try again",
    )


@contextmanager
def post(
    path: str,
    target: str,
    what: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float,
) -> Iterator[Answer]:
    """Ask the server at the socket `path` for `target` (path and query) by POST, without a body.

    The answer's head must come within `timeout` seconds. Raises `BootcError`.
    """
    try:
        channel = connect(path)
    except OSError as error:
        raise BootcError(f"{what}: podman's socket {path}: {error.strerror}") from error
    with channel:
        connection = _Connection(channel)
        channel.settimeout(timeout)
        try:
            connection.request("POST", target, headers={"Host": "d", **(headers or {})})
            response = connection.getresponse()
        except TimeoutError as error:
            raise BootcError(
                f"{what}: no answer from podman after {timeout:.0f} s",
                hint="another podman may hold the storage: `fuser -v` on its storage.lock tells",
            ) from error
        except (ConnectionError, http.client.RemoteDisconnected) as error:
            raise BootcError(f"{what}: podman closed the connection: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise BootcError(f"{what}: the answer is no HTTP: {said}") from error
        with response:
            yield Answer(channel, response)
