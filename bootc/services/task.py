# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What an operation works with: the machine, who is told of its progress, how it is cancelled."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from bootc.deploy.migrate import open_for_change
from bootc.deploy.progress import Observer, Observers, ProgressLog, ProgressWriter, Stage
from bootc.deploy.sysroot import Sysroot, find_cmdline, is_container, open_booted
from bootc.services.failures import NotManagedError, NotRootError

_log = logging.getLogger(__name__)

Given = Mapping[str, Any]
"""The parameters of a call that are there."""
Answer = dict[str, Any]
"""Those of its last reply."""


def open_machine(*, writable: bool) -> AbstractContextManager[Sysroot]:
    """The running machine's system. Raises `BusyError` when another bootc is at work on it."""
    if is_container():
        raise NotManagedError("this is a container", hint="ask the service of the machine itself")
    if find_cmdline() is None:
        raise NotManagedError(
            "this system was not installed by bootc: the kernel command line has no composefs=",
            hint="`bootc install` installs",
        )
    if os.geteuid() != 0:
        raise NotRootError
    return open_for_change(wait=False) if writable else open_booted(writable=False)


OpenMachine = Callable[..., AbstractContextManager[Sysroot]]


class Interrupts:
    """Makes the first signal that is not too late a KeyboardInterrupt, and ignores the others: what
    is taken back by that one must not be interrupted itself."""

    def __init__(self) -> None:
        self.is_too_late: Callable[[], bool] = lambda: False
        self._taken = False

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def watch(self, fd: int) -> None:
        """Interrupt when the other end of the pipe `fd` is closed."""
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGINT)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(0):
            # It was closed before somebody watched.
            os.kill(os.getpid(), signal.SIGINT)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._taken:
            return
        if self.is_too_late():
            _log.info("it is too late to cancel this")
            return
        self._taken = True
        raise KeyboardInterrupt


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an operation works with."""

    open_machine: OpenMachine = open_machine
    tell_people: Callable[[], Observer] = ProgressLog
    interrupts: Interrupts = field(default_factory=Interrupts)
    out: int

    @contextmanager
    def observed(self, steps: tuple[Stage, ...]) -> Iterator[Observer]:
        """Who is told of the progress: people, and the service."""
        with ProgressWriter(os.dup(self.out), steps=steps) as writer:
            yield Observers([writer, self.tell_people()])
