# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Streams in the format of splitdirfdstream, for tests."""

from __future__ import annotations

import os
from collections.abc import Callable

from bootc.composefs.dirfdstream import StreamWriter


def written(write: Callable[[StreamWriter], None]) -> bytes:
    """The stream that `write` makes."""
    fd = os.memfd_create("stream")
    try:
        writer = StreamWriter(fd)
        write(writer)
        writer.flush()
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
