# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An operation as the service sees it: a process that works, tells its progress, and may be cut.

The process (`worker`) gets the call on its stdin, one line of JSON, and keeps the other end of that
pipe as a sign of life: when we die it is cancelled, too. On its stdout it says, a line each, events
of the progress protocol, then once how it ended:

    {"type": "Reply", "parameters": {…}}
    {"type": "Error", "name": "containers.bootc.update.Busy", "parameters": {…}}

To cancel is to send SIGINT, as a terminal does. The process decides whether it is too late for
that, so we always wait for its end. Its stderr is ours.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

from bootc import process
from bootc.varlink.call import ClientGoneError
from bootc.varlink.message import Reply, VarlinkError
from bootc.varlink.service import Call, Cancelled, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_log = logging.getLogger(__name__)
WORKER = (sys.executable, "-P", "-m", "bootc.services.worker")
"""`-P`: nothing is imported from the folder that we were started in."""
_CHUNK = 1 << 16


def operate(call: Call, worker: Sequence[str] = WORKER) -> Stream:
    """The stream of replies of a call that a worker carries out."""
    peer = call.peer
    _log.info("%s, for process %d of user %d", call.method, peer.pid, peer.uid)
    request = {"method": call.method, "parameters": call.parameters}
    ended = False
    wanted = True
    with process.running(worker, stdin=process.PIPE, stdout=process.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        events = _events(child.stdout.fileno(), child.pid, call.cancelled)
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(f"{json.dumps(request)}\n".encode())
                child.stdin.flush()
            for event in events:
                kind = event.pop("type")
                ended = kind in ("Reply", "Error")
                if kind == "Reply":
                    return Reply(event["parameters"])
                if kind == "Error":
                    raise VarlinkError(event["name"], event["parameters"])
                if kind != "Start" and wanted:
                    try:
                        yield Reply({"progress": {"type": kind, **event}})
                    except ClientGoneError:
                        # The worker is told, too. If it is the service that ends, the client is
                        # there still, and waits for how the operation ended.
                        wanted = False
        finally:
            # Also when the client went away while it was told something: the operation ends first.
            if not ended:
                _interrupt(child.pid)
            for _ in events:
                pass
            status = child.wait()
    problem = f"the process that was to do it ended with status {status}"
    interface = call.method.rpartition(".")[0]
    raise VarlinkError(f"{interface}.Failed", {"message": problem, "hint": "look at the journal"})


def _events(fd: int, pid: int, cancelled: Cancelled) -> Iterator[dict[str, Any]]:
    """What the worker says, up to its end; it is interrupted when the call is cancelled."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    gone = cancelled.fileno()
    poll.register(gone, select.POLLIN)
    data = b""
    while True:
        for ready, _ in poll.poll():
            if ready == gone:
                poll.unregister(gone)
                _interrupt(pid)
                continue
            piece = os.read(fd, _CHUNK)
            if not piece:
                return
            *lines, data = (data + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _interrupt(pid: int) -> None:
    """The process leads a group of its own; what it started in it is told, too."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGINT)
