# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Leftover machines are found and ended, and nobody else's process is touched."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootc import process
from vmtests import lease as leases
from vmtests.hypervisor import recorded_bases, runtime_root, sweep_checkout
from vmtests.lease import Lease, Process
from vmtests.machine import forwarded_ports


@contextmanager
def fake_qemu(root: Path, name: str) -> Iterator[Process]:
    """A program that looks like the QEMU of `name`, with libvirt's pid file for it."""
    script = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    with process.running(["/bin/sh", "-c", script, "qemu", f"guest={name},debug=on"]) as child:
        folder = root / leases.PID_FILES
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.pid").write_text(f"{child.pid}\n")
        deadline = time.monotonic() + 10
        while leases.find_qemu(folder, name) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        found = leases.find_process(child.pid)
        assert found is not None
        yield found


def dead_process() -> Process:
    return replace(leases.this_process(), start=1)


def lease_for(name: str, **changes: Any) -> Lease:
    base = Lease(
        name=name, owner=leases.this_process(), uri="qemu:///embed?root=/x", console=Path("/c")
    )
    return replace(base, **changes)


def test_lease_round_trip(tmp_path: Path) -> None:
    full = lease_for(
        "m",
        persistent=True,
        expires=5.5,
        qemu=Process(pid=1, start=2),
        port=2222,
        key=Path("/k"),
        scratch=Path("/s"),
        labels={"image": "x"},
    )
    for lease in (full, lease_for("n")):
        leases.write_lease(tmp_path, lease)
        assert leases.find_lease(tmp_path, lease.name) == lease
    assert [lease.name for lease in leases.read_leases(tmp_path)] == ["m", "n"]


def test_a_reused_pid_is_another_process() -> None:
    me = leases.this_process()
    assert me.is_alive()
    assert not replace(me, start=me.start - 1).is_alive()


def test_sweep_ends_the_machine_of_a_dead_owner_and_its_folder(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with fake_qemu(tmp_path, "left") as qemu:
        # As after SIGKILL between libvirt's start and the note of QEMU's pid.
        leases.write_lease(tmp_path, lease_for("left", owner=dead_process(), scratch=scratch))
        assert leases.sweep(tmp_path) == ["left"]
        assert not qemu.is_alive()
    assert not scratch.exists()
    assert leases.read_leases(tmp_path) == []
    assert not (tmp_path / "run/qemu/left.pid").exists()


def test_sweep_leaves_live_and_persistent_machines(tmp_path: Path) -> None:
    with fake_qemu(tmp_path, "mine") as mine, fake_qemu(tmp_path, "dev") as dev:
        leases.write_lease(tmp_path, lease_for("mine", qemu=mine))
        leases.write_lease(
            tmp_path, lease_for("dev", qemu=dev, owner=dead_process(), persistent=True)
        )
        assert leases.sweep(tmp_path) == []
        assert mine.is_alive()
        assert dev.is_alive()


def test_an_expired_lease_ends_even_a_persistent_machine(tmp_path: Path) -> None:
    with fake_qemu(tmp_path, "kept") as qemu:
        leases.write_lease(
            tmp_path, lease_for("kept", qemu=qemu, persistent=True, expires=time.time() - 1)
        )
        assert leases.sweep(tmp_path) == ["kept"]
        assert not qemu.is_alive()


def test_a_pid_file_that_names_a_stranger_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / leases.PID_FILES
    folder.mkdir(parents=True)
    (folder / "left.pid").write_text(f"{os.getpid()}\n")
    leases.write_lease(tmp_path, lease_for("left", owner=dead_process()))
    assert leases.sweep(tmp_path) == ["left"]  # and we are still here


def test_strays_without_a_record_are_ended(tmp_path: Path) -> None:
    with fake_qemu(tmp_path, "stray") as qemu:
        assert leases.sweep(tmp_path) == []
        assert leases.sweep_strays(tmp_path) == ["stray"]
        assert not qemu.is_alive()


def test_an_unreadable_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "x.json").write_text('{"name": 3}')
    assert leases.read_leases(tmp_path) == []


def test_the_runtime_folder_is_found_again_under_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, run = tmp_path / "checkout", tmp_path / "run"
    checkout.mkdir()
    run.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    root = runtime_root(checkout, "tmt")
    assert root.parent.parent == run
    with fake_qemu(root, "left") as qemu:
        leases.write_lease(root, lease_for("left", owner=dead_process()))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert runtime_root(checkout, "tmt").parent.parent == tmp_path
        assert len(recorded_bases(checkout)) == 2
        assert sweep_checkout(checkout) == ["left"]
        assert not qemu.is_alive()


USERNET = """Hub -1 (hostnet0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  17       127.0.0.1 38863       10.0.2.15    22     0     0
  TCP[ESTABLISHED]   19       127.0.0.1 38863       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  18       127.0.0.1 40000       10.0.2.15    80     0     0
"""


def test_the_port_that_the_kernel_chose_is_read() -> None:
    assert forwarded_ports(USERNET) == [38863]
    assert forwarded_ports("") == []


_SUBREAPER = """
import shutil, subprocess, sys, threading, time
from pathlib import Path
from bootc.linux import libc
from vmtests import lease
libc.set_child_subreaper()
threading.Thread(target=lease.reap_orphans, args=(0.01,), daemon=True).start()
program = Path(sys.argv[1]) / "qemu-system-none"
shutil.copy(shutil.which("sleep"), program)
if len(sys.argv) > 2:  # an orphan that nobody waits for, and that ended before
    orphan = subprocess.run(["sh", "-c", "sleep 0.3 >/dev/null & echo $!"], stdout=subprocess.PIPE)
    while " Z " not in Path(f"/proc/{int(orphan.stdout)}/stat").read_text():
        time.sleep(0.01)
said = subprocess.run(["sh", "-c", f"{program} 0.5 >/dev/null & echo $!"], stdout=subprocess.PIPE)
pid = int(said.stdout)
own = subprocess.Popen(["sleep", "0.7"])
for _ in range(1000):
    if not Path(f"/proc/{pid}").exists():
        print("taken notice of")
        break
    time.sleep(0.01)
time.sleep(0.5)
print("status of our own child:", own.wait())
"""


@pytest.mark.parametrize("another", [(), ("another orphan",)], ids=["alone", "behind-another"])
def test_orphaned_qemu_leaves_no_zombie(tmp_path: Path, another: tuple[str, ...]) -> None:
    done = process.run([sys.executable, "-c", _SUBREAPER, str(tmp_path), *another], timeout=60)
    assert done.stdout == "taken notice of\nstatus of our own child: 0\n", done.stderr
