# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What this computer lacks for the kit, what will be slow on it, and the command that mends it.

`check()` looks and changes nothing but the kept verdict about KVM.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bootc import process
from bootc.errors import BootcError, ProcessError
from vmtests import accel, firmware
from vmtests.domain import Accel

_OLDEST_QEMU = (8, 1)
_DISK_GIB = 10
_MEMORY_MIB = 3072
_SUBORDINATE_IDS = 65535


class Severity(StrEnum):
    MISSING = "missing"
    SLOW = "slow"
    FINE = "fine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact. `mend` is a command, or what else to do; empty when there is nothing to do."""

    severity: Severity
    what: str
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    program: str
    purpose: str
    debian: str
    fedora: str


_TOOLS = (
    _Tool(program="qemu-img", purpose="overlays", debian="qemu-utils", fedora="qemu-img"),
    _Tool(program="podman", purpose="build images", debian="podman", fedora="podman"),
    _Tool(program="mmdebstrap", purpose="base image", debian="mmdebstrap", fedora="mmdebstrap"),
    _Tool(program="skopeo", purpose="read images", debian="skopeo", fedora="skopeo"),
    _Tool(program="sfdisk", purpose="partitions", debian="fdisk", fedora="util-linux-core"),
    _Tool(program="mke2fs", purpose="disks from folders", debian="e2fsprogs", fedora="e2fsprogs"),
)


def install_command(*, debian: str, fedora: str, release: str | None = None) -> str:
    """How this distribution installs a package; `release` is os-release's text."""
    text = _os_release() if release is None else release
    family = " ".join(re.findall(r'^(?:ID|ID_LIKE)="?([^"\n]*)', text, re.MULTILINE))
    if re.search(r"fedora|rhel|centos", family):
        return f"dnf install {fedora}"
    if "debian" in family or "ubuntu" in family:
        return f"apt-get install {debian}"
    return f"install the package {debian} (Debian) or {fedora} (Fedora)"


def _os_release() -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        if os.path.exists(path):
            return Path(path).read_text()
    return ""


def check(state: Path) -> list[Finding]:
    """Every finding, the worst first. `state` is the kit's folder (`.bootc`)."""
    found = [
        *_check_qemu(state / "cache"),
        *_check_libvirt(),
        *_check_tools(),
        *(() if os.geteuid() == 0 else check_subordinate_ids()),
        *_check_firmware(),
        *_check_room(state),
    ]
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def parse_qemu_version(text: str) -> tuple[int, int] | None:
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _check_qemu(cache: Path) -> Iterator[Finding]:
    install = install_command(debian="qemu-system-x86", fedora="qemu-system-x86-core")
    try:
        said = process.run(["qemu-system-x86_64", "--version"], timeout=20).stdout
    except ProcessError:
        yield Finding(severity=Severity.MISSING, what="qemu-system-x86_64", mend=install)
        return
    version = parse_qemu_version(said)
    if version is None or version < _OLDEST_QEMU:
        text = "of unknown version" if version is None else f"{version[0]}.{version[1]}"
        yield Finding(
            severity=Severity.MISSING,
            what=f"QEMU 8.1 or later (this is {text}, whose emulation makes guests panic)",
            mend="Debian 12: apt-get install -t bookworm-backports qemu-system-x86 qemu-utils",
        )
    else:
        yield Finding(severity=Severity.FINE, what=f"QEMU {version[0]}.{version[1]}")
    try:
        verdict = accel.choose_accel(cache)
    except BootcError as error:
        yield Finding(severity=Severity.MISSING, what=str(error), mend=error.hint or install)
        return
    if verdict.accel is Accel.KVM:
        yield Finding(severity=Severity.FINE, what="KVM runs guests")
        return
    if not accel.KVM_DEVICE.exists():
        mend = (
            "modprobe kvm_intel || modprobe kvm_amd  (or switch on virtualisation in the firmware)"
        )
    elif not os.access(accel.KVM_DEVICE, os.R_OK | os.W_OK):
        mend = f"usermod -aG kvm {os.environ.get('USER', '$USER')}  (then log in again)"
    else:
        mend = f"nothing, if the host is itself a VM; to probe again: rm {cache / 'accel.json'}"
    yield Finding(
        severity=Severity.SLOW,
        what=f"machines run under TCG, a boot takes 12-20 s ({verdict.reason})",
        mend=mend,
    )


def _check_libvirt() -> Iterator[Finding]:
    install = install_command(
        debian="libvirt-daemon-system libvirt-daemon-driver-qemu",
        fedora="libvirt-daemon-driver-qemu",
    )
    patterns = ("/usr/lib/*/libvirt", "/usr/lib64/libvirt", "/usr/lib/libvirt")
    folders = [path for pattern in patterns for path in Path("/").glob(pattern[1:])]
    drivers = [found for folder in folders for found in folder.glob("**/libvirt_driver_qemu.so")]
    if not drivers:
        yield Finding(severity=Severity.MISSING, what="libvirt's QEMU driver", mend=install)
        return
    yield Finding(severity=Severity.FINE, what="libvirt's QEMU driver")
    helpers = [Path("/usr/lib/libvirt/libvirt_iohelper"), Path("/usr/libexec/libvirt_iohelper")]
    if not any(helper.exists() for helper in helpers):
        yield Finding(
            severity=Severity.SLOW,
            what="libvirt_iohelper is missing, so booted machines cannot be saved",
            mend=install_command(debian="libvirt-daemon-common", fedora="libvirt-daemon-common"),
        )


def _check_tools() -> Iterator[Finding]:
    for tool in _TOOLS:
        if process.find_program(tool.program) is None:
            yield Finding(
                severity=Severity.MISSING,
                what=f"{tool.program} ({tool.purpose})",
                mend=install_command(debian=tool.debian, fedora=tool.fedora),
            )
        else:
            yield Finding(severity=Severity.FINE, what=tool.program)


def mapped_ids(uid_map: str) -> int:
    """How many ids the text of a /proc/PID/uid_map maps; 0 if it is something else."""
    rows = [line.split() for line in uid_map.splitlines()]
    if not all(len(row) == 3 and all(map(str.isdigit, row)) for row in rows):
        return 0
    return sum(int(row[2]) for row in rows)


def check_subordinate_ids() -> Iterator[Finding]:
    """Without root podman and mmdebstrap give the files of an image subordinate ids."""
    try:
        said = process.run(["podman", "unshare", "cat", "/proc/self/uid_map"], timeout=60).stdout
    except ProcessError as error:
        lines = (error.stderr or str(error)).strip().splitlines()
        yield Finding(
            severity=Severity.MISSING,
            what=f"a user namespace for podman ({lines[-1]})",
            mend="as root: sysctl user.max_user_namespaces=28633; or run the kit as root",
        )
        return
    count = mapped_ids(said)
    if count <= _SUBORDINATE_IDS:
        user = pwd.getpwuid(os.geteuid()).pw_name
        ids = "--add-subuids 200000-265535 --add-subgids 200000-265535"
        yield Finding(
            severity=Severity.MISSING,
            what=f"subordinate ids: podman has {max(0, count - 1)}, an image takes "
            f"{_SUBORDINATE_IDS}",
            mend=f"as root: usermod {ids} {user}; then: podman system migrate",
        )
    else:
        yield Finding(severity=Severity.FINE, what=f"{count - 1} subordinate ids")


def _check_firmware() -> Iterator[Finding]:
    for secure in (False, True):
        kind = "UEFI firmware" + (" with Secure Boot" if secure else "")
        if firmware.find_firmware(secure=secure) is None:
            mend = install_command(debian="ovmf", fedora="edk2-ovmf")
            yield Finding(severity=Severity.MISSING, what=kind, mend=mend)
        else:
            yield Finding(severity=Severity.FINE, what=kind)


def _check_room(state: Path) -> Iterator[Finding]:
    place = next(path for path in (state, *state.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    if free < _DISK_GIB:
        yield Finding(
            severity=Severity.MISSING,
            what=f"room: {place} has {free:.1f} GiB free, the kit wants {_DISK_GIB}",
            mend="./dev invoke clean; podman system prune",
        )
    else:
        yield Finding(severity=Severity.FINE, what=f"{free:.0f} GiB of room")
    memory = available_memory_mib(Path("/proc/meminfo").read_text())
    if memory is not None and memory < _MEMORY_MIB:
        yield Finding(
            severity=Severity.SLOW,
            what=f"{memory} MiB of memory are available; a machine takes 1024, a build 2048",
            mend="end what holds memory: ps aux --sort=-rss | head",
        )
    cpus = len(os.sched_getaffinity(0))
    if cpus < 2:
        yield Finding(
            severity=Severity.SLOW,
            what="one CPU: under TCG everything takes twice as long",
            mend="give this computer (or container) two CPUs",
        )


def available_memory_mib(meminfo: str) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) // 1024 if found else None
