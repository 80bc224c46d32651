# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Machines themselves: booting, failing to, saving, rebooting, and leaving nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import process
from vmtests import disk, image, lease, paths, readiness, snapshot
from vmtests.domain import DirectKernel, DiskFormat, MachineSpec
from vmtests.machine import Machine, start_machine
from vmtests.options import BcvkInstallOpts
from vmtests.plans import Plan
from vmtests.readiness import Doom, MachineStuck, Stage
from vmtests.results import Outcome
from vmtests.runner import run_plans
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


_HANGING = """trap '' TERM
(trap '' TERM; setsid sleep 7654 & sleep 7654) &
sleep 7654"""


def test_hanging_test_is_ended_and_the_next_one_runs(
    session: Session, spec: MachineSpec, tmp_path: Path
) -> None:
    root = tmp_path / "checkout"
    for name in (".fmf", "tmt/plans", "tmt/tests"):
        (root / name).mkdir(parents=True)
    (root / ".fmf/version").write_text("1\n")
    shutil.copytree(paths.CHECKOUT / "tmt/scripts", root / "tmt/scripts")
    (root / "tmt/plans/all.fmf").write_text("execute: {how: tmt}\ndiscover: {how: fmf}\n")
    tests = {"a-hangs": _HANGING, "b-next": "! pgrep --full 'sleep 765[4]'"}
    for name, script in tests.items():
        program = root / f"tmt/tests/{name}.sh"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
    (root / "tmt/tests/main.fmf").write_text(
        "".join(f"/{name}:\n  test: ./{name}.sh\n  duration: 5s\n" for name in tests)
    )

    @contextmanager
    def provide(_plan: Plan) -> Iterator[Machine]:
        with start_machine(session.hypervisor(), spec, key=session.key) as machine:
            yield machine

    run = run_plans([], provide, tmp_path / "out", root=root, context={"distro": "debian-13"})
    hangs, following = run.tests
    assert hangs.outcome is Outcome.ERROR
    assert hangs.notes[0] == "no end after 5 s"
    assert following.outcome is Outcome.PASS, following.output
    assert run.exit_status == 2


def test_no_free_port_is_told_and_ends_the_machine(spec: MachineSpec, tmp_path: Path) -> None:
    """In a network of its own, whose two ports are taken."""
    argv = ["unshare", "--net", sys.executable, "-c", _WITHOUT_PORTS, str(tmp_path)]
    done = process.run([*argv, str(spec.disks[0].path)], timeout=120, check=False)
    assert done.status == 1, done.stdout + done.stderr
    told, advice = done.stderr.splitlines()[-2:]
    assert told.startswith("error: QEMU cannot forward a port to bootc-portless: ")
    assert advice.startswith("hint: ")
    assert "machines left: []" in done.stdout


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


_WITHOUT_PORTS = """
import fcntl, socket, struct, sys
from pathlib import Path
from vmtests import lease, tell
from vmtests.domain import Disk, DiskFormat, MachineSpec
from vmtests.firmware import prepare_uefi
from vmtests.hypervisor import open_hypervisor
from vmtests.machine import Machine, start_machine
from vmtests.ssh import load_or_make_key
folder, disk = map(Path, sys.argv[1:])
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
control = socket.socket()
fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40001")
taken = []
for port in (40000, 40001):
    taken.append(socket.create_server(("127.0.0.1", port)))
spec = MachineSpec(
    name="bootc-portless",
    boot=prepare_uefi(folder / "machine"),
    disks=(Disk(path=disk, format=DiskFormat.QCOW2),),
    console=folder / "console",
)
root = Path("/run/bootc-portless")
try:
    with tell.reported(), open_hypervisor(None, root) as hypervisor:
        with start_machine(hypervisor, spec, key=load_or_make_key(folder)):
            pass
finally:
    print("machines left:", [one.name for one in lease.read_leases(root)])
"""

_OWNER = """
import sys
from pathlib import Path
from vmtests.domain import Disk, DiskFormat, MachineSpec, Uefi
from vmtests.firmware import prepare_uefi
from vmtests.hypervisor import open_hypervisor
from vmtests.machine import Machine, start_machine
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
