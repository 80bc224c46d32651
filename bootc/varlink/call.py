# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A call as its handler sees it: parameters, descriptors, who calls, whether they still wait."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Generator

from bootc.errors import BootcError
from bootc.records import dataclass
from bootc.varlink.message import FdList, Parameters, Reply, VarlinkError
from bootc.varlink.standard import invalid

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_log = logging.getLogger(__name__)

Stream = Generator[Reply, None, Reply]
"""What a handler that replies more than once is."""
Protocol = Callable[[socket.socket, bytes], None]
"""What goes on on a connection after an upgrade: the socket, and bytes that came already."""


class ClientGoneError(BootcError):
    """The client that made a call is gone, so the call came to nothing."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection")


class Upgrade(Reply):
    """The reply of a call with `upgrade`; then `protocol` has the socket until it returns."""

    __slots__ = ("protocol",)

    def __init__(
        self, protocol: Protocol, parameters: Parameters | None = None, fds: FdList | None = None
    ) -> None:
        super().__init__(parameters, fds or FdList())
        self.protocol = protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is on the other end, as the kernel knew it when the connection was made."""

    pid: int
    uid: int
    gid: int


class Cancelled:
    """Set when the client of a call is gone, or the server stops; never reset."""

    __slots__ = ("_ended", "_event", "_fd", "_lock")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._fd = -1
        self._ended = False

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for it; False when it did not happen in time."""
        return self._event.wait(seconds)

    def fileno(self) -> int:
        """A descriptor that becomes readable, for poll(2). It is closed when the call ends, and
        then there is none: `ValueError`.
        """
        with self._lock:
            if self._ended:
                raise ValueError("the call has ended")
            if self._fd < 0:
                self._fd = os.eventfd(1 if self.is_set() else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._fd

    def set(self) -> None:
        with self._lock:
            if not self._event.is_set():
                self._event.set()
                if self._fd >= 0:
                    os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        with self._lock:
            self._ended = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Connection:
    """One client, for as long as it is connected.

    `state` is the handlers' own. The callbacks of `on_close` run when the connection has ended, the
    last one first; what they raise is logged. Calls of one connection run one after another.
    """

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.state: dict[str, Any] = {}
        self._socket = sock
        self._peer: Peer | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._gone = False
        self._cancelled: Cancelled | None = None

    @property
    def peer(self) -> Peer:
        """Raises `OSError` when the socket has no credentials to tell."""
        if self._peer is None:
            if self._socket is None:
                raise OSError("there is no socket that tells who the peer is")
            data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid, uid, gid = struct.unpack("iII", data)
            self._peer = Peer(pid=pid, uid=uid, gid=gid)
        return self._peer

    @property
    def is_gone(self) -> bool:
        return self._gone

    def on_close(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)

    def hang_up(self) -> None:
        """The client is gone: tell the call that runs for it."""
        with self._lock:
            self._gone = True
            if self._cancelled is not None:
                self._cancelled.set()

    def begin(self, *, oneway: bool) -> Cancelled:
        """A call begins. Nobody waits for a `oneway` call, so nothing cancels it."""
        cancelled = Cancelled()
        if not oneway:
            with self._lock:
                self._cancelled = cancelled
                if self._gone:
                    cancelled.set()
        return cancelled

    def end(self, cancelled: Cancelled) -> None:
        with self._lock:
            self._cancelled = None
        cancelled.close()

    def run_callbacks(self) -> None:
        while self._callbacks:
            callback = self._callbacks.pop()
            try:
                callback()
            except Exception:
                _log.exception("at the end of a connection")


class Call:
    """One call, as its handler sees it. `fds` closes what the handler doesn't take.

    `parameters` is a JSON object of the type that the interface says; `typed` makes types of it for
    a type checker.
    """

    __slots__ = (
        "cancelled",
        "connection",
        "fds",
        "method",
        "more",
        "oneway",
        "parameters",
        "upgrade",
    )

    def __init__(
        self,
        method: str,
        parameters: Any,
        fds: FdList,
        connection: Connection,
        cancelled: Cancelled,
        *,
        more: bool = False,
        oneway: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.parameters = parameters
        self.fds = fds
        self.connection = connection
        self.cancelled = cancelled
        self.more = more
        self.oneway = oneway
        self.upgrade = upgrade

    @property
    def peer(self) -> Peer:
        return self.connection.peer

    def take_fd(self, index: int, parameter: str) -> int:
        """Take the descriptor that `parameter` names by its index; the caller closes it."""
        try:
            return self.fds.take(index)
        except IndexError:
            raise invalid(parameter) from None

    def expect_more(self) -> None:
        """Refuse the call unless it said `more`."""
        if not self.more:
            raise VarlinkError("org.varlink.service.ExpectedMore")

    def check(self) -> None:
        """Raises `ClientGoneError` when nobody waits any more: for loops that take their time."""
        if self.cancelled.is_set():
            raise ClientGoneError


Handle = Callable[[Call], Reply | Stream]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler and what its interface can't say: how many descriptors it wants (least and most),
    and whether the connection may be upgraded.
    """

    handle: Handle
    fds: tuple[int, int] = (0, 0)
    upgrade: bool = False
