# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The process that carries out one operation for the service; see `operation` for what it is told
and what it says.

It is a process of its own for the reasons that a command is one: it has a mount namespace, it forks
to hash, and it can be interrupted. The first SIGINT or SIGTERM, or the death of the service, ends
it as Ctrl-C ends a command, unless it is too late: what is staged stays staged, and the rest of the
work (old images are removed, others are told) is done.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from bootc import fs, log
from bootc.deploy.progress import Observer, ProgressLog
from bootc.errors import BootcError
from bootc.jsonutil import canonical
from bootc.services import installing, updating
from bootc.services.failures import error_reply
from bootc.services.task import OpenMachine, Task, open_machine

_log = logging.getLogger(__name__)
_CHUNK = 1 << 16
OPERATIONS = {
    updating.INTERFACE: updating.OPERATIONS,
    installing.INTERFACE: installing.OPERATIONS,
}


def run(task: Task, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Do what `method` says; the last line that is said about it."""
    interface, _, name = method.rpartition(".")
    given = {key: value for key, value in parameters.items() if value is not None}
    try:
        return {"type": "Reply", "parameters": OPERATIONS[interface][name](task, given)}
    except (KeyboardInterrupt, BootcError, OSError) as error:
        failure = error_reply(interface, error)
        _log.info("%s", failure.message)
        return {"type": "Error", "name": failure.name, "parameters": failure.parameters}


def main(
    open_it: OpenMachine = open_machine, tell_people: Callable[[], Observer] = ProgressLog
) -> int:
    """Do what stdin says. The exit status is 0 also for an operation that failed."""
    log.setup()
    # Nothing but our own lines may get to the service.
    out = os.dup(1)
    os.dup2(2, 1)
    request = _read_line(0)
    if request is None:
        return 1
    task = Task(open_machine=open_it, tell_people=tell_people, out=out)
    try:
        task.interrupts.install()
        task.interrupts.watch(0)
        last = run(task, request["method"], request["parameters"])
    except KeyboardInterrupt:
        # Before or after everything: an operation's own is caught above.
        interface = request["method"].rpartition(".")[0]
        last = {"type": "Error", "name": f"{interface}.Cancelled", "parameters": {}}
    try:
        fs.write_all(out, f"{canonical(last)}\n".encode())
    except BrokenPipeError:
        _log.info("nobody waits for the end of this")
    return 0


def _read_line(fd: int) -> dict[str, Any] | None:
    """The request; None if the service went away before it was said."""
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(fd, _CHUNK)
        if not piece:
            return None
        data += piece
    request: dict[str, Any] = json.loads(data)
    return request


if __name__ == "__main__":
    sys.exit(main())
