# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The service of `bootc`: its interfaces and handlers, who may call them, and its activation.

Root may call, and who runs the service; nobody else, whatever the mode of the socket is. The kernel
says who calls (SO_PEERCRED). Handlers are imported when they are called: a service that a socket
activates has to answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from bootc import __version__, log
from bootc.varlink.activation import from_environment
from bootc.varlink.idl import Interface, parse
from bootc.varlink.message import Reply, VarlinkError
from bootc.varlink.server import Server
from bootc.varlink.service import Call, Handle, Service, Stream

_log = logging.getLogger(__name__)
IDLE = 60.0
"""Seconds without a client after which a service ends that listens; systemd starts it again."""
_FOLDER = os.path.dirname(__file__)


def read_interface(name: str) -> Interface:
    path = f"{_FOLDER}/{name}.varlink"
    with open(path, encoding="utf-8") as file:
        return parse(file.read(), path)


def make_service(worker: Sequence[str] | None = None) -> Service:
    """The service; `worker` is the program that carries out operations, if not our own."""

    def operate(call: Call) -> Stream:
        from bootc.services import operation

        return operation.operate(call, worker or operation.WORKER)

    made = Service(
        vendor="bootc",
        product="bootc",
        version=__version__,
        url="https://bootc-dev.github.io/bootc/",
        authorize=authorize,
    )
    host: dict[str, Handle] = {
        "GetStatus": get_status,
        "GetStatusForSysroot": get_status_for_sysroot,
    }
    made.add(read_interface("containers.bootc"), host)
    updates = ("Check", "Upgrade", "Switch", "Rollback")
    made.add(read_interface("containers.bootc.update"), dict.fromkeys(updates, operate))
    installs: dict[str, Handle] = {
        "GetConfiguration": get_configuration,
        "ToDisk": operate,
        "ToFilesystem": operate,
    }
    made.add(read_interface("containers.bootc.install"), installs)
    return made


def get_status(call: Call) -> Reply:
    from bootc.services.host import get_status

    return get_status(call)


def get_status_for_sysroot(call: Call) -> Reply:
    from bootc.services.host import get_status_for_sysroot

    return get_status_for_sysroot(call)


def get_configuration(call: Call) -> Reply:
    from bootc.services.configuration import get_configuration

    return get_configuration(call)


def authorize(call: Call) -> None:
    """Refuse who is neither root nor ourselves."""
    peer = call.peer
    if peer.uid not in (0, os.geteuid()):
        _log.warning("%s: refused to process %d of user %d", call.method, peer.pid, peer.uid)
        raise VarlinkError("org.varlink.service.PermissionDenied")


def serve_activated(worker: Sequence[str] | None = None, *, idle: float = IDLE) -> None:
    """Serve on the sockets that we were started with, until nobody needs us any more.

    Ends when the last connection was closed or, with a socket that listens, when nobody was there
    for `idle` seconds; and on SIGTERM and SIGINT, after what is on its way was cancelled.
    """
    log.setup()
    given = from_environment()
    listening = any(one.listening for one in given)
    server = Server(
        make_service(worker),
        [one.socket() for one in given],
        idle=idle if listening else None,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    server.run()
