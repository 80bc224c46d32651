# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is served: interfaces, the handlers of their methods, and the rules of a call.

    service = Service(vendor="Example", product="Clock", version="1", url="https://example.org/")
    service.add(parse(TEXT), {"Now": now, "Open": Handler(open_it, fds=(1, 2))})

The interface decides: a call's parameters are of the method's type when the handler sees them, a
reply and an error are checked before they are sent. What isn't of its type there is a bug of the
server and becomes `containers.bootc.transport.Failed`, never a wrong answer.

A handler is called with a `Call`, in a thread of the server's. It returns a `Reply`, or it is a
generator: what it yields are replies that others follow (sent only if the call said `more`, else
closed), what it returns is the last one. It raises `VarlinkError` to reply an error. When the
client goes away `call.cancelled` is set and the generator is closed at its next `yield`.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from bootc.errors import BootcError
from bootc.varlink.idl import Interface, Method, parse
from bootc.varlink.message import FdList, Parameters, Reply, VarlinkError, decode, encode
from bootc.varlink.types import Mismatch
from bootc.varlink.wire import Frame

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_log = logging.getLogger(__name__)

SERVICE = parse(
    """# What every varlink service answers.
interface org.varlink.service

# Who made this service, and which interfaces it has.
method GetInfo() -> (
  vendor: string,
  product: string,
  version: string,
  url: string,
  interfaces: []string
)

# The text of an interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""
)

TRANSPORT = parse(
    """# What can go wrong with a message before a method sees it, and inside of the server.
# It has no methods, so GetInfo does not list it.
interface containers.bootc.transport

# The message isn't what the protocol says; the connection is closed.
error BadMessage (problem: string)

# The message has more bytes than that; the connection is closed.
error MessageTooLong (bytes_max: int)

# The message came with more file descriptors than that.
error TooManyDescriptors (descriptors_max: int)

# The server ran out of room for file descriptors while it received those of the message.
error DescriptorsLost ()

# The method wants another number of file descriptors.
error WrongDescriptors (expected: string, received: int)

# So many clients are connected; the connection is closed.
error TooManyClients (clients_max: int)

# The server failed, or its reply was not what its interface says.
error Failed (method: string, problem: string)
"""
)

_SHOWN = 2000
"""Characters of a failure that are told."""
_CALL = frozenset(("method", "parameters", "more", "oneway", "upgrade"))

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

    __slots__ = ("_event", "_fd", "_lock")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._fd = -1

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for it; False when it did not happen in time."""
        return self._event.wait(seconds)

    def fileno(self) -> int:
        """A descriptor that becomes readable, for poll(2). It is closed when the call ends."""
        with self._lock:
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


class _Bound:
    __slots__ = ("handler", "interface", "method")

    def __init__(self, interface: Interface, method: Method, handler: Handler) -> None:
        self.interface = interface
        self.method = method
        self.handler = handler


def invalid(parameter: str) -> VarlinkError:
    """The error for a parameter whose type is right and whose value isn't."""
    return VarlinkError("org.varlink.service.InvalidParameter", {"parameter": parameter})


def bad_message(problem: str) -> VarlinkError:
    return VarlinkError("containers.bootc.transport.BadMessage", {"problem": problem})


class Service:
    """Interfaces with their handlers. `authorize` sees each call before its handler, also those of
    org.varlink.service, and raises `VarlinkError` (`org.varlink.service.PermissionDenied`).
    """

    def __init__(
        self,
        *,
        vendor: str,
        product: str,
        version: str,
        url: str,
        authorize: Callable[[Call], None] | None = None,
    ) -> None:
        self._info = {"vendor": vendor, "product": product, "version": version, "url": url}
        self._authorize = authorize
        self._interfaces: dict[str, Interface] = {TRANSPORT.name: TRANSPORT}
        self._methods: dict[str, _Bound] = {}
        own: dict[str, Handle | Handler]
        own = {"GetInfo": self._get_info, "GetInterfaceDescription": self._describe}
        self.add(SERVICE, own)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The names that GetInfo tells."""
        return tuple(name for name in self._interfaces if name != TRANSPORT.name)

    def add(self, interface: Interface, handlers: Mapping[str, Handle | Handler]) -> None:
        """Serve an interface. A method without a handler is `MethodNotImplemented`.

        A plain function is a handler that takes no descriptors; use `Handler` for one that does.
        """
        if interface.name in self._interfaces:
            raise ValueError(f"there are two interfaces {interface.name}")
        if unknown := sorted(handlers.keys() - interface.methods.keys()):
            raise ValueError(f"{interface.name} has no method {unknown[0]}")
        self._interfaces[interface.name] = interface
        for name, given in handlers.items():
            handler = given if isinstance(given, Handler) else Handler(handle=given)
            bound = _Bound(interface, interface.methods[name], handler)
            self._methods[f"{interface.name}.{name}"] = bound

    def _get_info(self, call: Call) -> Reply:
        return Reply({**self._info, "interfaces": list(self.interfaces)})

    def _describe(self, call: Call) -> Reply:
        found = self._interfaces.get(call.parameters["interface"])
        if found is None:
            name = "org.varlink.service.InterfaceNotFound"
            raise VarlinkError(name, {"interface": call.parameters["interface"]})
        return Reply({"description": found.text})

    def _find(self, method: str) -> _Bound:
        found = self._methods.get(method)
        if found is not None:
            return found
        owner, _, name = method.rpartition(".")
        interface = self._interfaces.get(owner)
        if interface is None:
            raise VarlinkError("org.varlink.service.InterfaceNotFound", {"interface": owner})
        known = name in interface.methods
        problem = "MethodNotImplemented" if known else "MethodNotFound"
        raise VarlinkError(f"org.varlink.service.{problem}", {"method": method})

    def answer(
        self, connection: Connection, frame: Frame, send: Callable[[bytes, FdList], None]
    ) -> Upgrade | None:
        """Run the call that `frame` is and `send` its replies, none for a `oneway` call.

        Returns what takes over the connection. Raises `VarlinkError` when the frame is no call, so
        that nothing can be said about what follows; what `send` raises; and `ClientGoneError`.
        """
        with frame.fds:
            try:
                message = decode(frame.data)
            except ValueError as error:
                raise bad_message(str(error)) from None
            oneway = message.get("oneway") is True
            method = message.get("method")
            if type(method) is not str:
                raise bad_message("a call needs the name of its method")
            if connection.is_gone and not oneway:
                raise ClientGoneError
            cancelled = connection.begin(oneway=oneway)
            run = _Run(method, None if oneway else send, self._interfaces, cancelled)
            try:
                if frame.problem is not None:
                    raise frame.problem
                bound = self._find(method)
                call = _read_call(message, frame.fds, connection, cancelled, bound)
                run.bound, run.more = bound, call.more
                if self._authorize is not None:
                    self._authorize(call)
                return run.finish(bound.handler.handle(call))
            except VarlinkError as error:
                run.fail(error)
            except ClientGoneError:
                raise
            except BootcError as error:
                run.crash(error.message)
            except Exception as error:
                run.crash(f"{type(error).__name__}: {error}", error)
            finally:
                connection.end(cancelled)
        return None


def _read_call(
    message: dict[str, Any],
    fds: FdList,
    connection: Connection,
    cancelled: Cancelled,
    bound: _Bound,
) -> Call:
    flags = {"more": False, "oneway": False, "upgrade": False}
    for key, value in message.items():
        if key in flags:
            if type(value) is not bool:
                raise invalid(key)
            flags[key] = value
        elif key not in _CALL:
            raise invalid(key)
    handler = bound.handler
    if sum(flags.values()) > 1 or (flags["upgrade"] and not handler.upgrade):
        raise invalid("upgrade" if flags["upgrade"] else "more")
    parameters = message.get("parameters")
    if parameters is None:
        parameters = {}
    try:
        bound.method.parameters.check(parameters)
    except Mismatch as error:
        _log.debug("%s: %s", message["method"], error)
        raise invalid(error.path or "parameters") from None
    least, most = handler.fds
    if not least <= len(fds) <= most:
        name = "containers.bootc.transport.WrongDescriptors"
        expected = str(least) if least == most else f"{least} to {most}"
        raise VarlinkError(name, {"expected": expected, "received": len(fds)})
    return Call(message["method"], parameters, fds, connection, cancelled, **flags)


class _Run:
    """The replies of one call."""

    def __init__(
        self,
        name: str,
        send: Callable[[bytes, FdList], None] | None,
        interfaces: Mapping[str, Interface],
        cancelled: Cancelled,
    ) -> None:
        self._cancelled = cancelled
        self._name = name
        self._send = send
        self._interfaces = interfaces
        self.bound: _Bound | None = None
        self.more = False

    def finish(self, answer: Reply | Stream) -> Upgrade | None:
        """Send what the handler gave."""
        if isinstance(answer, Reply):
            self._reply(answer, continues=False)
            return answer if isinstance(answer, Upgrade) else None
        if not hasattr(answer, "send"):
            raise TypeError("the handler gave no reply")
        try:
            while True:
                try:
                    reply = next(answer)
                except StopIteration as end:
                    reply = end.value
                    if not isinstance(reply, Reply):
                        raise TypeError("the handler did not return its last reply") from None
                    self._reply(reply, continues=False)
                    return reply if isinstance(reply, Upgrade) else None
                with reply.fds:
                    if self._cancelled.is_set():
                        raise ClientGoneError
                    if self.more:
                        self._reply(reply, continues=True)
        finally:
            answer.close()

    def _reply(self, reply: Reply, *, continues: bool) -> None:
        with reply.fds:
            assert self.bound is not None
            try:
                self.bound.method.reply.check(reply.parameters)
            except Mismatch as error:
                raise TypeError(f"a reply that is none: {error}") from None
            if self._send is not None:
                message: dict[str, Any] = {"parameters": reply.parameters}
                if continues:
                    message["continues"] = True
                self._send(encode(message), reply.fds)

    def fail(self, error: VarlinkError) -> None:
        """Send an error, if it is one of an interface that is served."""
        owner, _, name = error.name.rpartition(".")
        interface = self._interfaces.get(owner)
        declared = interface.errors.get(name) if interface else None
        if declared is None:
            self.crash(f"raised {error.name}, which no interface here has")
            return
        try:
            declared.check(error.parameters)
        except Mismatch as mismatch:
            self.crash(f"raised {error.name} with parameters that it has not: {mismatch}")
            return
        if self._send is not None:
            try:
                message = encode({"error": error.name, "parameters": error.parameters})
            except ValueError as problem:
                self.crash(f"raised {error.name} with parameters that are no JSON: {problem}")
            else:
                self._send(message, FdList())

    def crash(self, problem: str, error: Exception | None = None) -> None:
        """Send what went wrong in here, and log it, with the way to the `error`."""
        problem = problem if len(problem) <= _SHOWN else f"{problem[:_SHOWN]}…"
        _log.warning("%s: %s", self._name, problem, exc_info=error)
        if self._send is not None:
            name = "containers.bootc.transport.Failed"
            clean = problem.encode("utf-8", "replace").decode()
            parameters = {"method": self._name, "problem": clean}
            self._send(encode({"error": name, "parameters": parameters}), FdList())
