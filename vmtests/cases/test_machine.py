# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Machines themselves: booting, failing to, saving, rebooting, and leaving nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmtests import disk, image, lease, readiness, snapshot
from vmtests.domain import DirectKernel, DiskFormat, MachineSpec
from vmtests.machine import start_machine
from vmtests.options import BcvkInstallOpts
from vmtests.readiness import Doom, MachineStuck, Stage
from vmtests.session import Session, open_session
from vmtests.tree import ImageTree, exported

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with open_session(BcvkInstallOpts.from_env()) as opened:
        yield opened


@pytest.fixture(scope="module")
def tree(session: Session) -> Iterator[ImageTree]:
    with exported(image.build_image(session.opts)) as found:
        yield found


@pytest.fixture
def spec(session: Session, tree: ImageTree, tmp_path: Path) -> MachineSpec:
    return disk.tree_spec(
        tree, tmp_path, name="bootc-case", accel=session.accel(), opts=session.opts
    )


def test_saved_machine_is_restored_clean_on_time_and_reboots(
    session: Session, tree: ImageTree, spec: MachineSpec, tmp_path: Path
) -> None:
    spec = replace(spec, disks=(replace(spec.disks[0], path=tree.tree, format=DiskFormat.RAW),))
    cache = tmp_path / "memory"
    for turn in range(3):
        with snapshot.booted_machine(
            session.hypervisor(),
            spec,
            key=session.key,
            cache=cache,
            disk_key="tree",
            scratch=tmp_path / "scratch",
        ) as machine:
            if turn == 2:  # the memory was corrupt: booted and saved again, and as good
                assert len(list(cache.glob("*/manifest.json"))) == 1
            assert "restore" in machine.timings
            assert machine.run("ls /var/tmp/written", check=False).status != 0
            machine.run("touch /var/tmp/written; sync")
            assert abs(float(machine.run("date +%s.%N").stdout) - time.time()) < 5
            if turn == 0:
                before = machine.identity
                times = machine.reboot()
                assert machine.identity != before
                assert times["ready"] > 0
        if turn == 1:
            (memory,) = cache.glob("*/memory")
            with memory.open("r+b") as file:
                file.seek(memory.stat().st_size // 2)
                file.write(b"not what was saved")
    assert session.hypervisor().names() == []


def test_panic_is_told_at_once_with_its_console(session: Session, spec: MachineSpec) -> None:
    assert isinstance(spec.boot, DirectKernel)
    boot = replace(spec.boot, initrd=None, cmdline=f"{spec.boot.cmdline} root=/dev/none")
    with (
        pytest.raises(MachineStuck) as caught,
        start_machine(session.hypervisor(), replace(spec, boot=boot), key=session.key, retries=0),
    ):
        pass
    assert caught.value.doom is Doom.PANIC
    assert caught.value.stage is Stage.KERNEL
    assert "Kernel panic" in caught.value.console
    assert session.hypervisor().names() == []


def test_guest_without_sshd_is_told_from_one_that_hangs(
    session: Session, spec: MachineSpec
) -> None:
    assert isinstance(spec.boot, DirectKernel)
    masked = "systemd.mask=ssh.service systemd.mask=ssh.socket"
    boot = replace(spec.boot, cmdline=f"{spec.boot.cmdline} {masked}")
    limits = readiness.limits(readiness.TCG_FACTOR) | {Stage.SSHD: 15.0}
    with (
        pytest.raises(MachineStuck, match="login prompt, but no sshd answers") as caught,
        start_machine(
            session.hypervisor(), replace(spec, boot=boot), key=session.key, limits=limits
        ),
    ):
        pass
    assert caught.value.stage is Stage.USERSPACE
    assert session.hypervisor().names() == []


def test_initrd_that_finds_no_root_is_told_at_once(session: Session, spec: MachineSpec) -> None:
    assert isinstance(spec.boot, DirectKernel)
    boot = replace(spec.boot, cmdline=f"{spec.boot.cmdline} composefs={'0' * 128}")
    with (
        pytest.raises(MachineStuck) as caught,
        start_machine(session.hypervisor(), replace(spec, boot=boot), key=session.key),
    ):
        pass
    assert caught.value.doom is Doom.NO_ROOT
    assert "bootc-initrd: cannot boot" in caught.value.console


def _start_owner(root: Path, spec: MachineSpec) -> tuple[int, lease.Lease]:
    """Another process that boots a machine under `root`; returns once QEMU runs."""
    argv = [sys.executable, "-c", _OWNER, str(root), str(spec.disks[0].path), str(spec.console)]
    owner = os.posix_spawn(sys.executable, argv, os.environ)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = lease.find_lease(root, "bootc-owned")
        if found is not None and found.qemu is not None:
            return owner, found
        time.sleep(0.1)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    raise AssertionError("the owner started no machine in 120 s")


def test_interrupted_owner_ends_its_machine(session: Session, spec: MachineSpec) -> None:
    root = session.root.with_name(f"interrupted-{os.getpid()}")
    owner, found = _start_owner(root, spec)
    assert found.is_running()
    os.kill(owner, signal.SIGINT)
    os.waitpid(owner, 0)
    assert not found.is_running()
    assert lease.find_lease(root, "bootc-owned") is None


def test_killed_owner_leaves_nothing_that_the_next_run_does_not_end(
    session: Session, spec: MachineSpec
) -> None:
    root = session.root.with_name(f"killed-{os.getpid()}")
    owner, found = _start_owner(root, spec)
    try:
        assert found.is_running()
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert found.is_running()
    assert lease.sweep(root) == ["bootc-owned"]
    assert not found.is_running()


_OWNER = """
import sys
from pathlib import Path
from vmtests.domain import Disk, DiskFormat, MachineSpec, Uefi
from vmtests.firmware import prepare_uefi
from vmtests.hypervisor import open_hypervisor
from vmtests.machine import start_machine
from vmtests.ssh import load_or_make_key
root, disk, console = map(Path, sys.argv[1:])
spec = MachineSpec(
    name="bootc-owned",
    boot=prepare_uefi(console.parent / "owned"),
    disks=(Disk(path=disk, format=DiskFormat.QCOW2),),
    console=console,
)
with open_hypervisor(None, root) as hypervisor:
    with start_machine(hypervisor, spec, key=load_or_make_key(console.parent)):
        pass
"""
