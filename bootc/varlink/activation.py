# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Sockets that we were started with, as systemd and `varlinkctl exec:` hand them over.

Source: sd_listen_fds(3). `LISTEN_PID` is our process id, `LISTEN_FDS` the number of descriptors,
which begin at 3, `LISTEN_FDNAMES` their names, joined by colons (optional). When `LISTEN_PID` isn't
ours the variables are somebody else's, and we weren't activated.

A socket may be a listening one (`Accept=no`) or a connection (`exec:`, `Accept=yes`);
`SO_ACCEPTCONN` tells.
"""

from __future__ import annotations

import os
import socket
import stat

from bootc.errors import FormatError
from bootc.records import dataclass

FIRST_FD = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    """One descriptor that was handed over. `listening`: connections come out of it."""

    fd: int
    name: str
    listening: bool

    def socket(self) -> socket.socket:
        """The socket, which owns the descriptor from now on."""
        return socket.socket(fileno=self.fd)


def is_activated() -> bool:
    """Whether the variables are for this process; nothing is imported or changed for it."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def from_environment() -> tuple[Activated, ...]:
    """What we were started with; () when that is nothing.

    The descriptors get close-on-exec, and the variables are removed, so no child takes them for its
    own. Raises `FormatError` for a number that isn't one and for what is no stream socket.
    """
    if not is_activated():
        return ()
    values = {name: os.environ.pop(name, None) for name in _VARIABLES}
    told = values["LISTEN_FDS"] or ""
    if not (told.isascii() and told.isdigit() and len(told) < 7):
        raise FormatError("the environment", "LISTEN_FDS", f"{told!r} is no number of descriptors")
    names = (values["LISTEN_FDNAMES"] or "").split(":")
    names += ["unknown"] * (int(told) - len(names))
    return tuple(
        _activated(fd, name or "unknown")
        for fd, name in zip(range(FIRST_FD, FIRST_FD + int(told)), names, strict=False)
    )


def _activated(fd: int, name: str) -> Activated:
    try:
        os.set_inheritable(fd, False)
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        raise FormatError("the environment", "LISTEN_FDS", f"{fd}: {error.strerror}") from error
    if is_socket:
        # Borrowed: the descriptor stays open, whoever asks for the socket owns it.
        borrowed = socket.socket(fileno=fd)
        try:
            stream = borrowed.type == socket.SOCK_STREAM
            listening = borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0
        finally:
            borrowed.detach()
        if stream:
            return Activated(fd=fd, name=name, listening=listening)
    raise FormatError("the environment", "LISTEN_FDS", f"descriptor {fd} is no stream socket")
