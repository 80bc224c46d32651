# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A podman API server of our own: it begins with a block and ends with it, or with us.

Readiness is told, not guessed: podman writes `READY=1` to the datagram socket that NOTIFY_SOCKET
names (sd_notify(3)) when it listens. For one that doesn't, the socket is tried now and then.
systemd's other way, a listener handed over as descriptor 3 (LISTEN_FDS), cannot be used: podman
takes exactly descriptor 3, which is where bootc's storage has its run root.

It ends by SIGTERM, then SIGKILL, with the block; by PR_SET_PDEATHSIG when we are killed; and
where that is lost, as when SELinux changes its domain, by itself: `--time` seconds after the last
connection was closed. Folders that killed ones have left are removed by the next one: who uses one
holds its lock.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from bootc import fs, process
from bootc.errors import BootcError, ProcessError
from bootc.podman.command import Podman

_READY_TIMEOUT = 90.0
_IDLE_SECONDS = 60
_SLICE = 0.2
_TAIL = 2000
_PREFIX = "api-"
_NEW = 60.0
_SOCKET = "podman.sock"
_NOTIFY = "notify"


@contextmanager
def api_service(
    podman: Podman, folder: str = "/run/bootc", *, timeout: float = _READY_TIMEOUT
) -> Iterator[str]:
    """The path of the server's socket, in a folder below `folder` that only root can enter.

    Raises `BootcError` when the server isn't there after `timeout` seconds, `ProcessError` when it
    ended before.
    """
    os.makedirs(folder, exist_ok=True)
    with ExitStack() as stack:
        own = stack.enter_context(_own_folder(folder))
        path, notify = f"{own}/{_SOCKET}", f"{own}/{_NOTIFY}"
        from bootc.podman.http import check_socket_path  # start-up time of each upgrade

        check_socket_path(path)
        told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        told.bind(notify)
        said = stack.enter_context(tempfile.TemporaryFile())
        words = ["system", "service", f"--time={_IDLE_SECONDS}", f"unix://{path}"]
        shown = ["podman", *words]
        child = stack.enter_context(
            process.running(
                [*podman.argv, *words],
                env={**podman.env, "NOTIFY_SOCKET": notify},
                stdout=said,
                stderr=said,
                pass_fds=podman.fds,
            )
        )
        _wait(child, shown, told, path, said, timeout)
        try:
            yield path
        except BootcError as error:
            status = child.poll()
            if status is None:
                raise
            raise ProcessError(shown, status, _tail(said), hint=error.hint) from error


@contextmanager
def _own_folder(folder: str) -> Iterator[str]:
    _remove_stale(folder)
    made = tempfile.mkdtemp(prefix=_PREFIX, dir=folder)
    try:
        with fs.open_directory(made) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_stale(folder: str) -> None:
    """Remove what has no owner any more; a new folder gets its lock within the time that counts."""
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        try:
            if not name.startswith(_PREFIX) or time.time() - os.stat(path).st_mtime < _NEW:
                continue
            with fs.open_directory(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _wait(
    child: process.Child,
    shown: list[str],
    told: socket.socket,
    path: str,
    said: IO[bytes],
    timeout: float,
) -> None:
    """Until it takes connections. Raises `BootcError`."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(told, select.POLLIN)
    ended = os.pidfd_open(child.pid)
    try:
        poll.register(ended, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(_SLICE * 1000)}
            if told.fileno() in ready and b"READY=1" in told.recv(4096).splitlines():
                return
            if ended in ready:
                child.wait()
                raise ProcessError(
                    shown,
                    child.returncode,
                    _tail(said),
                    reason=f"podman's API server ended at once (status {child.returncode})",
                    hint="`podman info` tells what it lacks on this machine",
                )
            if not ready and _answers(path):
                return
            if time.monotonic() > deadline:
                raise BootcError(
                    f"podman's API server is not ready after {timeout:.0f} s"
                    + (f": {_tail(said)}" if _tail(said) else ""),
                    hint="another podman may hold the storage: `fuser -v` on its storage.lock "
                    "tells",
                )
    finally:
        os.close(ended)


def _answers(path: str) -> bool:
    try:
        from bootc.podman.http import connect  # see above

        connect(path, timeout=_SLICE).close()
    except OSError:
        return False
    return True


def _tail(said: IO[bytes]) -> str:
    """The end of what it wrote, in one line."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _TAIL))
    lines = said.read().decode("utf-8", "replace").split("\n")[-4:]
    return " | ".join(line.strip() for line in lines if line.strip())
