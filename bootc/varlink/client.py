# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The client: calls over a connection, one at a time.

    with Client.connect("unix:/run/example.sock") as client:
        client.call("org.example.clock.Now").parameters["time"]

Addresses: `unix:/path` (or `/path`), `unix:@abstract`, `exec:PROGRAM` with blanks between its
arguments: it is started with the connection, as if systemd had activated it.

Errors that the server replies are raised as `VarlinkError`. A connection that fails, or is left in
the middle of a stream of replies, is closed: the next call says so.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack

from bootc.closing import Closing
from bootc.errors import BootcError, FormatError
from bootc.varlink.idl import Interface, parse
from bootc.varlink.message import FdList, Parameters, Reply, VarlinkError, decode, encode
from bootc.varlink.types import Mismatch
from bootc.varlink.wire import Frame, Limits, Stream

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

EXEC_PATIENCE = 5.0
"""Seconds that a program of `exec:` has to end by itself after the connection was closed."""
_REPLY = frozenset(("parameters", "continues", "error"))
# Descriptor 3 is the connection, as sd_listen_fds(3) wants it.
_EXEC = (
    "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=varlink "
    'export LISTEN_FDS LISTEN_PID LISTEN_FDNAMES; exec "$@"'
)


class Upgraded:
    """What a connection is after an upgrade: the first reply, the socket, bytes that came early."""

    __slots__ = ("early", "reply", "socket")

    def __init__(self, reply: Reply, sock: socket.socket, early: bytes) -> None:
        self.reply = reply
        self.socket = sock
        self.early = early


class Client(Closing):
    """A connection. It owns the socket. What `interfaces` (or `learn`) make known is checked:
    parameters before they are sent, replies when they come.

    `timeout`: seconds that a reply may take; None waits as long as the server is there.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        interfaces: Iterable[Interface] = (),
        limits: Limits | None = None,
        timeout: float | None = None,
        peer: str = "the server",
    ) -> None:
        sock.setblocking(True)
        self._stream: Stream | None = Stream(sock, limits)
        self._known = {interface.name: interface for interface in interfaces}
        self._timeout = timeout
        self._peer = peer
        self._stack = ExitStack()

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        interfaces: Iterable[Interface] = (),
        limits: Limits | None = None,
        timeout: float | None = None,
    ) -> Self:
        """Connect to an address. Raises `BootcError`."""
        stack = ExitStack()
        kind, colon, rest = address.partition(":")
        if kind == "exec" and colon:
            sock = _start(rest, stack)
        elif (kind == "unix" and colon) or address.startswith("/"):
            sock = _connect((rest if colon else address).partition(";")[0], address)
        else:
            raise BootcError(f"{address} is no address", hint="use unix:/path or exec:PROGRAM")
        made = cls(sock, interfaces=interfaces, limits=limits, timeout=timeout, peer=address)
        made._stack = stack
        return made

    def learn(self, interface: str) -> Interface:
        """Ask the server for an interface, so that its calls are checked from now on."""
        asked = {"interface": interface}
        with self.call("org.varlink.service.GetInterfaceDescription", asked) as reply:
            text = reply.parameters.get("description")
        if not isinstance(text, str):
            raise FormatError(self._peer, "description", "is no text")
        made = parse(text, f"{interface} of {self._peer}")
        self._known[made.name] = made
        return made

    def call(
        self,
        method: str,
        parameters: Parameters | None = None,
        fds: FdList | Sequence[int] = (),
        *,
        timeout: float | None = None,
    ) -> Reply:
        """Call and wait for the one reply, whose `fds` are the caller's. `fds` stay the caller's.

        Raises `VarlinkError`, or `BootcError` when the connection fails.
        """
        self._send(method, parameters, fds, {})
        reply = self._receive(method, timeout)
        if reply.continues:
            reply.fds.close()
            raise self._broken(f"{method}: sent several replies, and one was asked for")
        return reply

    def stream(
        self,
        method: str,
        parameters: Parameters | None = None,
        fds: FdList | Sequence[int] = (),
        *,
        timeout: float | None = None,
    ) -> Generator[Reply, None, None]:
        """Call with `more`. The replies, each with `fds` that are the caller's.

        The call is made at once. Whoever closes the generator early closes the connection: that is
        how a call is cancelled. `timeout` is for each reply.
        """
        self._send(method, parameters, fds, {"more": True})
        return self._replies(method, timeout)

    def _replies(self, method: str, timeout: float | None) -> Generator[Reply, None, None]:
        ended = False
        try:
            while not ended:
                try:
                    reply = self._receive(method, timeout)
                except VarlinkError:
                    ended = True
                    raise
                ended = not reply.continues
                yield reply
        finally:
            if not ended:
                self.close()

    def oneway(
        self,
        method: str,
        parameters: Parameters | None = None,
        fds: FdList | Sequence[int] = (),
    ) -> None:
        """Call and don't wait: there is no reply, not even an error."""
        self._send(method, parameters, fds, {"oneway": True})

    def upgrade(
        self,
        method: str,
        parameters: Parameters | None = None,
        fds: FdList | Sequence[int] = (),
        *,
        timeout: float | None = None,
    ) -> Upgraded:
        """Call, and take the connection over for another protocol: the socket is the caller's."""
        self._send(method, parameters, fds, {"upgrade": True})
        reply = self._receive(method, timeout)
        stream, self._stream = self._need_stream(), None
        sock, early = stream.detach()
        return Upgraded(reply, sock, early)

    def close(self) -> None:
        """Close the connection; the program of `exec:` ends then, or is ended."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._stack.close()

    def _need_stream(self) -> Stream:
        if self._stream is None:
            raise BootcError(f"{self._peer}: the connection is closed", hint="connect again")
        return self._stream

    def _broken(self, problem: str) -> BootcError:
        self.close()
        return BootcError(f"{self._peer}: {problem}")

    def _send(
        self,
        method: str,
        parameters: Parameters | None,
        fds: FdList | Sequence[int],
        flags: dict[str, bool],
    ) -> None:
        stream = self._need_stream()
        sent = dict(parameters or {})
        owner, _, name = method.rpartition(".")
        if owner in self._known:
            known = self._known[owner].methods.get(name)
            if known is None:
                raise BootcError(f"{owner} has no method {name}")
            try:
                known.parameters.check(sent)
            except Mismatch as error:
                raise BootcError(f"{method}: {error}") from None
        try:
            # Without any they are left out: some servers take only that for a method without them.
            given = {"parameters": sent} if sent else {}
            data = encode({"method": method, **given, **flags})
        except (ValueError, TypeError) as error:
            raise BootcError(f"{method}: the parameters are no JSON: {error}") from error
        try:
            stream.send(data, list(fds))
        except ConnectionError as error:
            # The server may have said why.
            with self._receive(method, 0.0):
                raise self._broken(f"cannot send: {error.strerror}") from error
        except OSError as error:
            raise self._broken(f"cannot send: {error.strerror or error}") from error

    def _receive(self, method: str, timeout: float | None) -> Reply:
        stream = self._need_stream()
        timeout = self._timeout if timeout is None else timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            frame = stream.receive(deadline)
        except TimeoutError as error:
            raise self._broken(f"no reply to {method} within {timeout} s") from error
        except OSError as error:
            raise self._broken(f"{method}: {error.strerror or error}") from error
        except VarlinkError as error:
            raise self._broken(f"{method}: {error.message}") from error
        except BaseException:
            self.close()
            raise
        if frame is None:
            raise self._broken(f"closed the connection before it replied to {method}")
        try:
            return self._read(method, frame)
        except BaseException:
            frame.fds.close()
            raise

    def _read(self, method: str, frame: Frame) -> Reply:
        if frame.problem is not None:
            raise self._broken(f"{method}: {frame.problem.message}")
        try:
            message = decode(frame.data)
        except ValueError as bad:
            raise self._broken(f"the reply to {method} is {bad}") from bad
        parameters = message.get("parameters")
        parameters = {} if parameters is None else parameters
        error = message.get("error")
        continues = message.get("continues", False)
        if (
            not isinstance(parameters, dict)
            or not (error is None or isinstance(error, str))
            or not isinstance(continues, bool)
            or message.keys() - _REPLY
        ):
            raise self._broken(f"the reply to {method} is no reply")
        if error is not None:
            raise VarlinkError(error, parameters)
        owner, _, name = method.rpartition(".")
        if owner in self._known:
            try:
                self._known[owner].methods[name].reply.check(parameters)
            except Mismatch as bad:
                raise self._broken(f"the reply to {method}: {bad}") from None
        return Reply(parameters, frame.fds, continues=continues)


def _connect(path: str, address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)
    except OSError as error:
        sock.close()
        raise BootcError(
            f"{address}: cannot connect: {error.strerror or error}",
            hint="is the service running, and may you use its socket?",
        ) from error
    return sock


def _start(command: str, stack: ExitStack) -> socket.socket:
    # start-up time: servers import this package, too
    import shlex

    from bootc import process

    argv = shlex.split(command)
    if not argv:
        raise BootcError("exec: needs a program", hint="exec:/usr/bin/PROGRAM")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            shell = ["/bin/sh", "-c", _EXEC, "sh", *argv]
            child = stack.enter_context(process.running(shell, stdin=theirs.fileno()))

            def wait() -> None:
                end = time.monotonic() + EXEC_PATIENCE
                while child.poll() is None and time.monotonic() < end:
                    time.sleep(0.002)

            stack.callback(wait)
    except BaseException:
        ours.close()
        raise
    return ours
