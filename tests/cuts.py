# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Ends a piece of work at its N-th change of the file system, as a power cut or SIGKILL would.

The work runs in a child whose audit hook counts what Python is about to change (rename, remove,
link, mkdir, …, and opening for writing) and exits without any clean-up before number N. Changes
made by system calls of our own (renameat2) are not counted; what comes before and after them is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_CHANGES = frozenset(
    (
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.setxattr",
        "os.chmod",
        "os.chown",
    )
)
_WRITING = os.O_WRONLY | os.O_RDWR
_CUT = 91


def run_until_cut(work: Callable[[], object], number: int) -> bool:
    """Run `work` in a child and end it before its change `number` (from 0); whether it was cut.

    Raises `AssertionError` when the work fails by itself.
    """
    child = os.fork()
    if child == 0:
        left = number

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event == "open":
                flags = arguments[2] if len(arguments) > 2 else 0
                if not isinstance(flags, int) or not flags & _WRITING:
                    return
            elif event not in _CHANGES:
                return
            if left == 0:
                os._exit(_CUT)
            left -= 1

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(waited)
    assert status in (0, _CUT), f"the work failed by itself: {status}"
    return status == _CUT
