# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The locks of a store: shared ones, on the files that podman locks.

podman takes POSIX record locks (fcntl(2)) on `overlay-layers/layers.lock` and
`overlay-images/images.lock`, seen in /proc/locks with 4.3 and 5.4: a flock(2) would never meet
them. POSIX locks belong to the process and are lost as soon as it closes *any* descriptor of the
file. So ours are open file description locks, which conflict with podman's and belong to a
descriptor.

Nobody waits for ever: a lock that is held is asked for again and again until a time limit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bootc import log
from bootc.errors import BootcError

LOCK_TIMEOUT = 300.0
"""Seconds: a `podman pull` holds the layers' lock while it unpacks a layer."""
Pause = Callable[[float], object]
_PAUSE = 0.1
# struct flock: type, whence, start, length (0: to the end), process id (0 for these locks).
_FLOCK = struct.Struct("@hhqqi4x")
_BUSY = (errno.EAGAIN, errno.EACCES)


@contextmanager
def shared_lock(
    path: str, *, timeout: float = LOCK_TIMEOUT, pause: Pause = time.sleep
) -> Iterator[None]:
    """Hold a shared lock on the file `path`. A file that isn't there is a store nobody writes to.

    `pause` waits between two tries; what it raises ends the wait. Raises `BootcError` when somebody
    else holds an exclusive one for `timeout` seconds.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise BootcError(f"cannot lock {path}: {error.strerror}") from error
    try:
        if not _try(fd, path):
            _wait(fd, path, timeout, pause)
        yield
    finally:
        os.close(fd)


def _try(fd: int, path: str) -> bool:
    wanted = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise BootcError(f"cannot lock {path}: {error.strerror}") from error
    return True


def _wait(fd: int, path: str, timeout: float, pause: Pause) -> None:
    deadline = time.monotonic() + timeout
    with log.step(f"wait for whoever is writing to the storage ({path})"):
        while not _try(fd, path):
            if time.monotonic() > deadline:
                raise BootcError(
                    f"{path} is locked, for more than {timeout:.0f} s",
                    hint=f"`fuser -v {path}` tells by whom; try again when it is done",
                )
            pause(_PAUSE)
