# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Loads on a varlink server, sized for seconds; `nox -s interop -- composefs varlink` has more.

The server holds as many descriptors and threads as before, and no more memory but for what its
allocator keeps.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests import varlink_soak
from tests.varlink_soak import SOAKS, Scene

MEMORY = 3 << 20
COUNTS = {
    "calls on one connection": (10_000, 2000),
    "clients at once": (1000, 1000),
    "descriptors at random slots": (200, 50),
    "one byte at a time": (50, 20),
    "clients that leave": (300, 100),
    "fuzzed frames": (5000, 2000),
}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with varlink_soak.server() as made:
            yield made
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", SOAKS)
def test_a_load_leaves_nothing_behind(name: str, scene: Scene) -> None:
    count, first = COUNTS[name]
    before, after = varlink_soak.measured(scene, SOAKS[name], count, first=first)
    assert after.is_kept(before, MEMORY), f"{before} became {after}"
