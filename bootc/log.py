# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the program says while it works: stderr is the story, stdout the answer.

`with step("pull layers")` reports what a person waits for and how long it took.

What happened to the machine is told to the journal, too (see journal).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bootc import journal

_log = logging.getLogger("bootc.step")


def setup(*, level: str | None = None) -> None:
    """Send log records to stderr; `BOOTC_LOG` (debug, info, warning) or `level` sets how many."""
    journal.setup(level or os.environ.get("BOOTC_LOG", "info"))


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
