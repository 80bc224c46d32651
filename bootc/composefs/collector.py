# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Python's cyclic garbage collector, out of the way while trees are built.

A tree is tens of thousands of small objects and no cycles; the collector walks all of them again
and again as they grow, for about a fifth of the time, and finds nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Run a block without cyclic collection. May be nested; reference counting goes on."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
