# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The lock of a repository: flock(2) on its directory.

Whoever has a repository open holds it shared; the garbage collector holds it exclusively. So what
a writer has stored and not yet published is never collected. A collector changes its shared lock
into an exclusive one and back; the kernel gives the old one up first, so two collectors take turns.

The kernel counts descriptors, not processes: a process that has a repository open twice would wait
for itself for ever. Hence this module counts, too, and refuses.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bootc import log
from bootc.errors import BootcError

_PATIENCE = 0.05
"""Seconds between two tries for a lock, where the wait may be given up."""
_guard = threading.Lock()
_held: Counter[tuple[int, int]] = Counter()


GiveUp = Callable[[float], bool]
"""Waits so many seconds; True, at once, if nobody wants any more what is waited for."""


class GivenUpError(BootcError):
    """Nobody waits for the lock any more."""


class RepositoryLock:
    """A shared lock from the constructor's end to `release`; `fd` is borrowed.

    Raises `GivenUpError` when `give_up` says so while it waits.
    """

    def __init__(self, fd: int, path: str, give_up: GiveUp | None = None) -> None:
        self._fd = fd
        self._path = path
        found = os.fstat(fd)
        self._key = (found.st_dev, found.st_ino)
        _wait(fd, fcntl.LOCK_SH, f"wait for the garbage collection of {path}", give_up)
        with _guard:
            _held[self._key] += 1

    def release(self) -> None:
        """Give the lock up. The descriptor must not have been closed."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        with _guard:
            _held[self._key] -= 1
            if not _held[self._key]:
                del _held[self._key]

    @contextmanager
    def exclusive(self, give_up: GiveUp | None = None) -> Iterator[None]:
        """Wait until nobody else has the repository open, and keep everybody out.

        Between the shared and the exclusive lock another process may have collected: what was
        read before must be read again. Raises `BootcError` if this process has it open elsewhere,
        `GivenUpError` when `give_up` says so.
        """
        with _guard:
            others = _held[self._key] - 1
        if others:
            raise BootcError(
                f"{self._path} is open {others} more time{'s' * (others > 1)} in this process",
                hint="close the other handles of the repository first",
            )
        try:
            _wait(self._fd, fcntl.LOCK_EX, f"wait for the others that use {self._path}", give_up)
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_SH)


def _wait(fd: int, kind: int, what: str, give_up: GiveUp | None = None) -> None:
    """Take the lock; `what` is reported when that takes waiting."""
    if _try(fd, kind):
        return
    with log.step(what):
        if give_up is None:
            fcntl.flock(fd, kind)
            return
        while not _try(fd, kind):
            if give_up(_PATIENCE):
                raise GivenUpError("nobody waits for the lock any more")


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
