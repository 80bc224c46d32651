# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Ctrl-C in every phase of `nox -s tmt`: it ends soon, says so, and leaves nothing behind.

An image of its own (`BOOTC_base_img`) is built, exported, installed, booted, saved and tested; each
run is interrupted one phase later than the one before, on top of what those have cached. Needs
root; some five minutes under emulation.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc import process
from vmtests import hypervisor, lease, paths, podman

pytestmark = pytest.mark.vm

IMAGE = "localhost/bootc-interrupted"
PHASES = {
    "wheel": b"build the wheel \xe2\x80\xa6",
    "podman build": b"build localhost/bootc-interrupted \xe2\x80\xa6",
    "export": b"copy the tree of localhost/bootc-interrupted onto a disk \xe2\x80\xa6",
    "layout": b"as an OCI layout onto a disk \xe2\x80\xa6",
    "installer's boot": b": initrd",
    "pull": b" %, ",
    "end of the install": b"write boot files",
    "boot": b"bootc-tmt: userspace",
    "save": b"save bootc-tmt",
    "test": b"/tmt/tests/booted/readonly/status-json",
}
"""What the phase is called, and what is said when it has begun."""
_PHASE_LIMIT = 400.0
_END_LIMIT = 30.0


@pytest.fixture(scope="module", autouse=True)
def _own_image() -> Iterator[None]:
    yield
    podman.podman("rmi", "--force", IMAGE, timeout=120, check=False)


def _run_until(mark: bytes, log: Path) -> int:
    """Start the readonly plan, send SIGINT once it says `mark`; returns the exit status."""
    env = {**os.environ, "BOOTC_base_img": IMAGE, "TMT_LOG_DIR": ".bootc/results-interrupted"}
    argv = [sys.executable, "-m", "vmtests.main", "tmt", "readonly"]
    reading, writing = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, writing, 1),
        (os.POSIX_SPAWN_DUP2, writing, 2),
        (os.POSIX_SPAWN_CLOSE, reading),
    ]
    child = os.posix_spawn(sys.executable, argv, env, file_actions=actions, setpgroup=0)
    os.close(writing)
    said = b""
    deadline = time.monotonic() + _PHASE_LIMIT
    interrupted = False
    try:
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(reading, 65536)
            if not piece:
                break
            said += piece
            if not interrupted and mark in said:
                time.sleep(0.3)
                # The terminal signals the whole foreground group: the kit and what it runs.
                os.killpg(child, signal.SIGINT)
                interrupted = True
                deadline = time.monotonic() + _END_LIMIT
        else:
            os.killpg(child, signal.SIGKILL)
    finally:
        os.close(reading)
        log.write_bytes(said)
    assert interrupted, f"the run ended without saying {mark!r}: see {log}"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _left_behind() -> list[str]:
    """Machines, mounts, build containers and half-made cache entries that are still there."""
    left = []
    for base in hypervisor.recorded_bases(paths.CHECKOUT):
        for root in lease.iter_roots(base):
            left += [f"machine {one.name}" for one in lease.read_leases(root) if one.is_running()]
    mounted = podman.podman("mount", timeout=60).stdout
    left += [f"mount {line}" for line in mounted.splitlines()]
    listed = podman.podman("ps", "--all", "--external", "--format", "{{.Names}}", timeout=60)
    left += [f"container {line}" for line in listed.stdout.splitlines()]
    left += [str(path) for path in paths.CACHE.glob("*/.new-*")]
    return left


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt(phase: str, tmp_path: Path) -> None:
    before = _left_behind()
    log = tmp_path / "output"
    status = _run_until(PHASES[phase], log)
    text = log.read_text(errors="replace")
    assert status == 130, text[-2000:]
    assert "Traceback" not in text
    assert "interrupted; nothing is left running" in text
    assert _left_behind() == before
    assert not [
        line
        for line in process.run(["ps", "-eo", "pid,args"], timeout=30).stdout.splitlines()
        if "guest=bootc-install" in line or "guest=bootc-tmt" in line
    ]
