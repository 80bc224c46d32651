# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the program says while it works: stderr is the story, stdout the answer.

`with step("pull layers")` reports what a person waits for and how long it took.

What happened to the machine is told to the journal, too (see journal). `logging` itself is imported
when there is something to say: start-up time is felt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger


class _LaterLogger:
    """The logger of that name, looked up when it is first asked for something."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, key: str) -> object:
        ready()
        import logging  # start-up time: most runs of `bootc status` have nothing to say

        found: object = getattr(logging.getLogger(self._name), key)
        return found


if TYPE_CHECKING:

    def later_logger(name: str) -> Logger: ...

else:

    def later_logger(name):
        """`logging.getLogger(name)`, at no cost yet: for modules that `bootc status` needs."""
        return _LaterLogger(name)


_log = later_logger("bootc.step")
_pending: list[str] = []


def setup(*, level: str | None = None) -> None:
    """Send log records to stderr; `BOOTC_LOG` (debug, info, warning) or `level` sets how many."""
    from bootc import journal

    _pending.clear()
    journal.setup(level or os.environ.get("BOOTC_LOG", "info"))


def setup_later() -> None:
    """`setup`, but when there is something to say, or when `ready` is called."""
    _pending.append("setup")


def ready() -> None:
    """What `setup_later` put off: before calling modules that use `logging` themselves."""
    if _pending:
        setup()


@contextmanager
def step(what: str) -> Iterator[None]:
    """Report `what` when it starts and its time in seconds when it ends, also when it fails."""
    _log.info("%s …", what)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        _log.info("%s: failed after %.1f s", what, time.monotonic() - start)
        raise
    _log.info("%s: %.1f s", what, time.monotonic() - start)


def show_size(size: int) -> str:
    """A number of bytes for people."""
    mebibytes = size / (1 << 20)
    if mebibytes < 1:
        return f"{size / 1024:.0f} KiB"
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
