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
from collections.abc import Callable, Mapping

from bootc.errors import BootcError
from bootc.varlink.call import (
    Call,
    Cancelled,
    ClientGoneError,
    Connection,
    Handle,
    Handler,
    Stream,
    Upgrade,
)
from bootc.varlink.idl import Interface, Method
from bootc.varlink.message import FdList, Reply, VarlinkError, decode, encode
from bootc.varlink.standard import SERVICE, TRANSPORT, bad_message, invalid
from bootc.varlink.types import Mismatch
from bootc.varlink.wire import Frame

# `typing` is not imported when the program runs: start-up time is felt.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Whoever writes a service needs these, too.
__all__ = ["Call", "Cancelled", "Handle", "Service", "Stream"]

_log = logging.getLogger(__name__)

_SHOWN = 2000
"""Characters of a failure that are told."""
_CALL = frozenset(("method", "parameters", "more", "oneway", "upgrade"))


class _Bound:
    __slots__ = ("handler", "interface", "method")

    def __init__(self, interface: Interface, method: Method, handler: Handler) -> None:
        self.interface = interface
        self.method = method
        self.handler = handler


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
        gone = False
        try:
            while True:
                try:
                    # A client is there still when it is the server that stops: the handler may
                    # have something to say that is no reply.
                    reply = answer.throw(ClientGoneError()) if gone else next(answer)
                except StopIteration as end:
                    reply = end.value
                    if not isinstance(reply, Reply):
                        raise TypeError("the handler did not return its last reply") from None
                    self._reply(reply, continues=False)
                    return reply if isinstance(reply, Upgrade) else None
                with reply.fds:
                    if gone:
                        raise ClientGoneError
                    gone = self._cancelled.is_set()
                    if self.more and not gone:
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
