# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Loads on a varlink server, sized for seconds; `nox -s interop -- composefs varlink` has more.

The server holds as many descriptors and threads as before, and no more memory but for what its
allocator keeps.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bootc.varlink import VarlinkError
from tests import varlink_soak
from tests.varlink_soak import SOAKS, Scene

MEMORY = 3 << 20
COUNTS = {
    "calls on one connection": (10_000, 2000),
    "clients at once": (1000, 1000),
    "descriptors at random slots": (200, 50),
    "one byte at a time": (50, 20),
    "clients that leave": (300, 100),
    "fuzzed frames": (3000, 1000),
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


def test_a_server_without_descriptors_lets_clients_wait() -> None:
    with varlink_soak.server(fds=20) as scene, ExitStack() as stack:
        before = scene.held()
        clients = [stack.enter_context(scene.client()) for _ in range(30)]
        for number in range(8):
            reply = clients[number].call("org.example.test.Echo", {"text": f"{number}"})
            assert reply.parameters == {"text": f"{number}"}
        # Room for the connection, and none for the descriptors.
        opened = {"text": "", "before": 30}
        with pytest.raises(VarlinkError, match="Too many open files"):
            clients[0].call("org.example.test.Open", opened)
        with open("/dev/null") as null, pytest.raises(VarlinkError, match="DescriptorsLost"):
            clients[1].call("org.example.test.Read", {"fd_index": 0}, [null.fileno()] * 3)
        assert clients[1].call("org.example.test.Echo", {"text": "a"}).parameters == {"text": "a"}
        # While there is no room the server sleeps.
        used = _processor_seconds(scene.pid)
        time.sleep(1)
        assert _processor_seconds(scene.pid) - used < 0.3
        for client in clients[:20]:
            client.close()
        for client in clients[20:]:
            assert client.call("org.example.test.Echo", {"text": "b"}).parameters == {"text": "b"}
        stack.close()
        assert scene.held().fds == before.fds


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
