# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], object], seconds: float = 10.0) -> None:
    """Return once `reached` says yes; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
