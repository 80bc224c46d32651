# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Messages and file descriptors on a stream socket.

A message ends with a NUL byte. Descriptors come by `SCM_RIGHTS` with the bytes of their message
(unix(7)): the sender attaches them to one sendmsg(2) that has bytes of that message alone. The
kernel ends a read after such a piece, so they belong to the message that holds the last byte of the
read that brought them, wherever messages were split or joined on the way.

Descriptors that the kernel could not deliver (`MSG_CTRUNC`: we have no room for more of them) and
those above the limit are a problem of their message; the stream goes on. A message above the limit
is the end of the stream. Whatever isn't handed out is closed by `close`.
"""

from __future__ import annotations

import array
import os
import select
import socket
import stat
import time
from collections.abc import Sequence

from bootc.records import dataclass
from bootc.varlink.message import FdList, VarlinkError

SCM_MAX = 253
"""Descriptors that the kernel takes in one piece."""
_READ = 1 << 16
_ANCILLARY = socket.CMSG_SPACE(SCM_MAX * 4)
_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
# Not in Python's `socket` on each platform that mypy checks for; from the kernel's uapi.
_CLOEXEC = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server (or client) puts up with.

    `message`: bytes of a message; `fds`: descriptors of a message; `clients`: connections at a
    time; `handlers`: calls that run at a time, more wait; `unfinished`: bytes of messages that
    have not ended yet, of all clients; `send_seconds`: a peer that takes nothing for that long is
    given up.
    """

    message: int = 16 << 20
    fds: int = SCM_MAX
    clients: int = 4096
    handlers: int = 128
    unfinished: int = 256 << 20
    send_seconds: float = 60.0


class Frame:
    """A message as it came: its bytes without the NUL, its descriptors, what is wrong with it."""

    __slots__ = ("data", "fds", "problem")

    def __init__(self, data: bytes, fds: FdList, problem: VarlinkError | None = None) -> None:
        self.data = data
        self.fds = fds
        self.problem = problem


class Stream:
    """A connected stream socket that it owns. One thread may receive while another one sends."""

    def __init__(self, sock: socket.socket, limits: Limits | None = None) -> None:
        self.socket = sock
        self.limits = limits or Limits()
        self._buffer = bytearray()
        self._searched = 0
        # Counted from the stream's beginning: where the buffer begins, and for each lot of
        # descriptors the end of the read that brought it.
        self._start = 0
        self._lots: list[tuple[int, FdList, VarlinkError | None]] = []

    @property
    def waiting(self) -> int:
        """Bytes that are here and were not handed out."""
        return len(self._buffer)

    def pop(self) -> Frame | None:
        """The next message that is here as a whole."""
        end = self._buffer.find(0, self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > self.limits.message:
                raise self._too_long()
            return None
        if end > self.limits.message:
            raise self._too_long()
        data = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        self._start += end + 1
        if not self._lots or self._lots[0][0] > self._start:
            return Frame(data, FdList())
        return self._with_descriptors(data)

    def _too_long(self) -> VarlinkError:
        name = "containers.bootc.transport.MessageTooLong"
        return VarlinkError(name, {"bytes_max": self.limits.message})

    def _with_descriptors(self, data: bytes) -> Frame:
        fds: list[int] = []
        problem: VarlinkError | None = None
        while self._lots and self._lots[0][0] <= self._start:
            _, lot, lot_problem = self._lots.pop(0)
            fds += lot.take_all()
            problem = problem or lot_problem
        frame = Frame(data, FdList(fds), problem)
        if len(fds) > self.limits.fds and not problem:
            name = "containers.bootc.transport.TooManyDescriptors"
            frame.problem = VarlinkError(name, {"descriptors_max": self.limits.fds})
        return frame

    def fill(self, *, wait: bool = False) -> bool:
        """Read once; False at the end of the stream. Without `wait`: `BlockingIOError` if nothing
        is there.
        """
        flags = _CLOEXEC if wait else _CLOEXEC | socket.MSG_DONTWAIT
        data, ancillary, told, _ = self.socket.recvmsg(_READ, _ANCILLARY, flags)
        if ancillary or told & socket.MSG_CTRUNC:
            self._take_descriptors(len(data), ancillary, told)
        self._buffer += data
        return bool(data)

    def _take_descriptors(
        self, size: int, ancillary: list[tuple[int, int, bytes]], told: int
    ) -> None:
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        lot = FdList(fds)
        problem = None
        if told & socket.MSG_CTRUNC:
            lot.close()
            problem = VarlinkError("containers.bootc.transport.DescriptorsLost")
        elif sum(len(other) for _, other, _ in self._lots) > 4 * self.limits.fds:
            # A message that never ends may not gather more and more of them.
            lot.close()
            name = "containers.bootc.transport.TooManyDescriptors"
            problem = VarlinkError(name, {"descriptors_max": self.limits.fds})
        if len(lot) or problem:
            self._lots.append((self._start + len(self._buffer) + size, lot, problem))

    def receive(self, deadline: float | None = None) -> Frame | None:
        """Wait for a message; None at the end of the stream.

        Raises `TimeoutError` after `deadline` (as time.monotonic tells time), `ConnectionError`
        when the stream ends in the middle of a message.
        """
        while (frame := self.pop()) is None:
            if deadline is not None:
                self._wait(select.POLLIN, deadline)
            if not self.fill(wait=deadline is None):
                if self._buffer:
                    raise ConnectionResetError("the connection ended in the middle of a message")
                return None
        return frame

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message, the descriptors with its first bytes; they stay open here.

        Raises `OSError`, `TimeoutError` among it: part of it may be sent, the stream is of no use.
        """
        rights = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        sent = 0
        while sent < len(data):
            try:
                sent += self.socket.sendmsg([memoryview(data)[sent:]], ancillary, _DONTWAIT)
                ancillary = []
            except BlockingIOError:
                self._wait(select.POLLOUT, time.monotonic() + self.limits.send_seconds)

    def _wait(self, events: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self.socket, events)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the other side of the connection does not move")

    def take_early(self) -> bytes:
        """The bytes that were read and belong to no message yet."""
        early = bytes(self._buffer)
        self._start += len(early)
        self._buffer.clear()
        self._searched = 0
        return early

    def detach(self) -> tuple[socket.socket, bytes]:
        """The socket, as a blocking one, and the bytes that were read too early; descriptors that
        came with those are closed.
        """
        early = self.take_early()
        sock = socket.socket(fileno=self.socket.detach())
        sock.setblocking(True)
        self.close()
        return sock, early

    def close(self) -> None:
        for _, lot, _ in self._lots:
            lot.close()
        self._lots.clear()
        self.socket.close()


def bind(path: str, *, mode: int = 0o600, backlog: int = 4096) -> socket.socket:
    """A listening socket at `path` (`@name`: an abstract one) with `mode` from its first moment.

    A socket that nobody listens on is replaced. Raises `OSError`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        address = f"\0{path[1:]}" if path.startswith("@") else path
        # The mode of the file that bind makes is that of the socket, less the umask.
        os.fchmod(sock.fileno(), mode)
        try:
            sock.bind(address)
        except OSError:
            if path.startswith("@") or not _is_dead(path):
                raise
            os.unlink(path)
            sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_dead(path: str) -> bool:
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
