# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Runs the service on sockets, and ends as a service has to.

It ends with SIGTERM and SIGINT, with its last connection where it was started with connections
alone, and, if a socket started it, when nobody was connected for a while. Then it still waits for
receivers of layers: they may have closed the connection, and read the pipe.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from bootc.composefs.dirfdstream_export import join_exports
from bootc.composefs.services.handles import Options
from bootc.composefs.services.service import make_service
from bootc.varlink import Server

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(sockets: Sequence[socket.socket], options: Options, *, idle: float | None = None) -> None:
    """Serve on listening sockets and connections, which this closes."""
    server = Server(make_service(options), sockets, idle=idle)
    with _stopped_by_signals(server) as signals:
        server.run()
        if not signals:
            join_exports()


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[list[int]]:
    """The signals that came, while the block runs."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        server.stop()

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
