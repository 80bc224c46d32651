# SPDX-License-Identifier: Apache-2.0 OR MIT
"""KVM or TCG: decided by a guest that really runs, never by the look of /dev/kvm.

The probe guest is one boot sector. The firmware loads it through a virtio disk (so interrupts, PCI
and 16-bit code have worked by then); it makes page tables, enters long mode, executes CPUID and
RDTSC, and writes 0x2a to QEMU's debug exit port, which ends QEMU with status 2 * 0x2a + 1 = 85. Any
other end, or none within a few seconds, means that KVM is not usable here: nested virtualisation is
known to fail with an error, and also to hang in the first instructions.

The verdict is kept, because the probe of a hanging KVM takes its full limit. It is made anew when
QEMU, the running kernel or the /dev/kvm node changes.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError, FormatError, ProcessError
from bootc.jsonutil import pretty, read_object
from bootc.log import step
from vmtests.domain import Accel

KVM_DEVICE = Path("/dev/kvm")
PROBE_LIMIT = 5.0
"""Seconds for the emulated probe, which takes about a tenth of one."""
_SHORTEST_LIMIT = 1.0
_SLOWER_AT_MOST = 3.0
"""How much longer than the emulated probe KVM's may take. Nested virtualisation can run the probe,
but some thirty times slower than emulation does, and then never gets through a real kernel."""
_EXIT_STATUS = 85

_BOOT_SECTOR = bytes.fromhex(
    "fa"  # cli
    "31c0 8ed8 8ec0 8ed0"  # xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax
    "bc007c"  # mov sp,0x7c00
    "bf0010 b90018 31c0 fc f3ab"  # clear 0x1000..0x3fff: rep stosw
    "66c706001003200000"  # PML4[0] = 0x2003
    "66c706002003300000"  # PDPT[0] = 0x3003
    "66c706003083000000"  # PD[0]   = 0x0083: the first 2 MiB
    "66b800100000 0f22d8"  # cr3 = 0x1000
    "0f20e0 6683c820 0f22e0"  # cr4 |= PAE
    "66b9800000c0 0f32 660d00010000 0f30"  # EFER |= LME
    "0f0116907c"  # lgdt [0x7c90]
    "0f20c0 660d01000080 0f22c0"  # cr0 |= PG | PE
    "ea6b7c0800"  # jmp 8:0x7c6b
    "48b8f0debc9a78563412"  # 64 bits: mov rax,0x123456789abcdef0
    "0fa2 0f31"  # cpuid; rdtsc
    "b02a e6f4"  # out 0xf4,0x2a
    "f4 ebfd"  # hlt; jmp to it
    "0000000000000000 00000000009a2000"  # GDT at 0x7c80: null, 64-bit code
    "0f00 807c0000"  # GDT's limit and address, at 0x7c90
)


def boot_sector() -> bytes:
    """The probe's disk: 1 MiB, because firmware does not boot from a disk without a cylinder."""
    return (_BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the probe found; `reason` is for people."""

    accel: Accel
    reason: str


def probe(accel: Accel, *, emulator: str = "qemu-system-x86_64", limit: float) -> str | None:
    """Boot the probe guest: None when it ran to its end, else what happened instead."""
    with tempfile.NamedTemporaryFile(prefix="bootc-probe-") as disk:
        disk.write(boot_sector())
        disk.flush()
        argv = [
            *(emulator, "-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "64"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-drive", f"if=none,id=d,format=raw,file={disk.name},snapshot=on"),
            *("-device", "virtio-blk-pci,drive=d"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        ]
        try:
            done = process.run(argv, timeout=limit, check=False)
        except ProcessError as error:
            return str(error).partition(": ")[2] or str(error)
    if done.status == _EXIT_STATUS:
        return None
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"QEMU ended with status {done.status}"


def choose_accel(cache: Path, *, emulator: str = "qemu-system-x86_64") -> Verdict:
    """KVM if its probe guest boots, else TCG. `cache` is the folder of kept verdicts."""
    if not KVM_DEVICE.exists():
        return Verdict(accel=Accel.TCG, reason=f"there is no {KVM_DEVICE}")
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Verdict(accel=Accel.TCG, reason=f"{KVM_DEVICE} is not ours to open")
    key = _key(emulator)
    path = cache / "accel.json"
    kept = _find_kept(path, key)
    if kept is not None:
        return kept
    with step("probe KVM"):
        verdict = _judge(emulator)
    cache.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(pretty({"key": key, "accel": verdict.accel, "reason": verdict.reason}))
    fresh.rename(path)
    return verdict


def _judge(emulator: str) -> Verdict:
    """Race KVM against emulation; a KVM that loses clearly is of no use."""
    start = time.monotonic()
    probe(Accel.TCG, emulator=emulator, limit=PROBE_LIMIT)
    emulated = time.monotonic() - start
    limit = max(_SHORTEST_LIMIT, _SLOWER_AT_MOST * emulated)
    failure = probe(Accel.KVM, emulator=emulator, limit=limit)
    if failure is None:
        return Verdict(accel=Accel.KVM, reason="a probe guest ran under KVM")
    reason = f"KVM does not run a guest here: {failure} (emulation: {emulated:.1f} s)"
    return Verdict(accel=Accel.TCG, reason=reason)


def _key(emulator: str) -> str:
    try:
        version = process.run([emulator, "--version"], timeout=20).stdout.splitlines()[0]
    except (ProcessError, IndexError) as error:
        raise BootcError(
            f"{emulator} does not run: {error}",
            hint="Debian: apt-get install qemu-system-x86; Fedora: dnf install qemu-kvm",
        ) from error
    node = KVM_DEVICE.stat()
    device = f"{node.st_rdev} {node.st_ino} {node.st_ctime_ns}"
    return f"race 1 | {version} | {os.uname().release} | {device}"


def _find_kept(path: Path, key: str) -> Verdict | None:
    try:
        kept = read_object(path.read_bytes(), str(path))
        if kept.text("key") != key:
            return None
        return Verdict(accel=Accel(kept.text("accel")), reason=kept.text("reason"))
    except (OSError, FormatError, ValueError):
        return None
