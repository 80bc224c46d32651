# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Prints the seconds until root is logged in: `python -m tests.bench.machine_times KIND`.

tree       the image's tree as a plain ext4 root, kernel and initrd given to QEMU: a boot with
           no boot loader and no composefs, what every other boot is compared with
installed  the same image installed: UEFI, systemd-boot, composefs with verity
restored   the installed machine from the booted-memory cache
install    the real installer onto an empty disk, in the guest of `tree`
objects    4,000 files of 6,000 bytes there: unnamed, written, fs-verity enabled, linked
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bootc.errors import BootcError
from vmtests import dev, disk, image, snapshot, tree
from vmtests.domain import Disk, DiskFormat
from vmtests.image import BuiltImage
from vmtests.machine import Machine, start_machine
from vmtests.options import BcvkInstallOpts
from vmtests.qcow2 import make_qcow2
from vmtests.session import Session, open_session

_OBJECTS = """
import fcntl, os, struct, subprocess, time
FS_IOC_ENABLE_VERITY, SHA256 = 0x40806685, 1
disk = "/dev/disk/by-id/virtio-target"
subprocess.run(["mkfs.ext4", "-q", "-O", "verity", disk], check=True)
os.mkdir("/run/target")
subprocess.run(["mount", disk, "/run/target"], check=True)
os.chdir("/run/target")
begin = time.monotonic()
for number in range(4000):
    writing = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o644)
    os.write(writing, b"x" * 6000)
    reading = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY)
    os.close(writing)
    argument = struct.pack("=IIII QI", 1, SHA256, 4096, 0, 0, 0)
    fcntl.ioctl(reading, FS_IOC_ENABLE_VERITY, argument.ljust(128, b"\\0"))
    os.link(f"/proc/self/fd/{reading}", str(number), follow_symlinks=True)
    os.close(reading)
print(time.monotonic() - begin)
"""


@contextmanager
def _tree_machine(session: Session, built: BuiltImage, scratch: Path) -> Iterator[Machine]:
    """The guest that installs: its root, the image as a layout, an empty target."""
    with tree.exported(built) as files:
        spec = disk.tree_spec(
            files, scratch, name="bootc-bench", accel=session.accel(), opts=session.opts
        )
        target = scratch / "target.qcow2"
        make_qcow2(target, size=session.opts.disk_size)
        disks = (
            *spec.disks,
            Disk(path=files.layout, readonly=True, serial="layout"),
            Disk(path=target, format=DiskFormat.QCOW2, serial="target"),
        )
        spec = replace(spec, disks=disks, memory_mib=max(spec.memory_mib, disk.INSTALLER_MEMORY))
        with start_machine(session.hypervisor(), spec, key=session.key) as machine:
            yield machine


def _tree(session: Session, built: BuiltImage, scratch: Path) -> float:
    with _tree_machine(session, built, scratch) as machine:
        return machine.timings["ready"]


def _objects(session: Session, built: BuiltImage, scratch: Path) -> float:
    with _tree_machine(session, built, scratch) as machine:
        command = f"python3 - <<'END'\n{_OBJECTS}\nEND"
        return float(machine.run(command, timeout=600).stdout)


def _install(session: Session, built: BuiltImage, scratch: Path) -> float:
    with _tree_machine(session, built, scratch) as machine:
        begin = time.monotonic()
        disk.run_installer(machine, session.opts)
        return time.monotonic() - begin


def _installed(session: Session, built: BuiltImage, scratch: Path) -> float:
    with disk.installed_disk(built, session.opts, session.accel(), session.hypervisor) as base:
        spec = dev.installed_spec(base, scratch, name="bootc-bench", session=session)
        with start_machine(session.hypervisor(), spec, key=session.key) as machine:
            return machine.timings["ready"]


def _restored(session: Session, built: BuiltImage, scratch: Path) -> float:
    with disk.installed_disk(built, session.opts, session.accel(), session.hypervisor) as base:
        spec = dev.installed_spec(base, scratch / "spec", name="bootc-bench", session=session)
        spec = replace(spec, disks=tuple(replace(one, path=base.path) for one in spec.disks))
        with snapshot.booted_machine(
            session.hypervisor(),
            spec,
            key=session.key,
            cache=scratch.parent / "bootc-bench-memory",
            disk_key=base.key,
            scratch=scratch / "restored",
        ) as machine:
            if "restore" not in machine.timings:
                raise BootcError("the machine was booted, not restored")
            return machine.timings["ready"]


KINDS = {
    "tree": _tree,
    "installed": _installed,
    "restored": _restored,
    "objects": _objects,
    "install": _install,
}


def main() -> int:
    opts = BcvkInstallOpts.from_env()
    built = image.build_image(opts)
    with open_session(opts) as session, tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        print(f"{KINDS[sys.argv[1]](session, built, Path(scratch)):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
