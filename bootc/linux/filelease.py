# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Read leases on files: proof that nobody wrote to a file while we read it. See fcntl(2), "Leases".

A read lease is given only on a file that nobody has open for writing, nor mapped for it. Whoever
then opens it for writing, or truncates it, waits until the lease is given up (45 seconds at most);
from that moment on `holds` is False. The lease belongs to the open file: it ends with the last
descriptor of it.

The kernel tells the holder by a signal, whose default would be to end the process. It is SIGURG
here, which does nothing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def is_own(fd: int) -> bool:
    """Whether only root and we may write to the file: else a lease proves too little.

    What was mapped for writing may still be the target of somebody's direct I/O, which no lease
    knows of.
    """
    found = os.fstat(fd)
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _WRITABLE


def take(fd: int) -> bool:
    """Take a lease on the file `fd`, open for reading only; False if it isn't given."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def release(fd: int) -> None:
    """Give the lease up: nobody waits for it any more."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def holds(fd: int) -> bool:
    """Whether nobody has wanted to write since `take` gave the lease."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    except OSError:
        return False
