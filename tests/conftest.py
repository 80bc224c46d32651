# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What is true of all tests.

Property tests have no time limit an example: a slow machine finds no defects that way. What a test
needs of the machine its markers say; it is skipped, by name, where that is not to be had.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before fixtures are made."""
    needs = {mark.name for mark in item.iter_markers()}
    if "root" in needs and os.geteuid() != 0:
        pytest.skip("needs root")
    if "erofs" in needs and "\terofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs a kernel that mounts EROFS")
