# SPDX-License-Identifier: Apache-2.0 OR MIT
"""How far a booting machine has come, told from its serial console and from its SSH port.

Stages, in order; a stage begins when its first sign is seen, and a later sign implies the earlier
stages (a kernel that is loaded directly shows no firmware):

    process    QEMU runs
    firmware   `BdsDxe:`, systemd-boot, GRUB (SeaBIOS says nothing on a serial console)
    kernel     `Linux version`, or any line with a kernel time stamp
    initrd     `bootc-initrd: `, `dracut`, systemd's greeting with `(Initramfs)` or `dracut-NNN`
    userspace  systemd's greeting, a switch of root, a login prompt
    sshd       its banner on the forwarded port
    login      root's key is accepted; it ends when the first command has run

`KERNEL_ARGS` make the guest give these signs: `console=ttyS0` for the console, `loglevel=6` so that
`Linux version` is shown though most of the kernel's talk is not (7 and up costs a second under
TCG), `systemd.show_status=1` for the greeting and for the unit that a hang is waiting for.

A failure that cannot heal is recognised at once: a kernel panic, an emergency shell, firmware that
finds nothing (allowed) to boot, and the end of QEMU. Otherwise each stage has a limit of its own,
whose clock goes slower while the host has more work than CPUs (`host_speed`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bootc.errors import BootcError

KERNEL_ARGS = ("console=ttyS0", "loglevel=6", "systemd.show_status=1")

FAST_ARGS = (
    "mitigations=off",
    "audit=0",
    "8250.nr_uarts=1",
    # udev handles a renamed interface twice, and networkd waits for it: a second of each boot.
    "net.ifnames=0",
    "cryptomgr.notests",
    "no_timer_check",
    "tsc=reliable",
    "init_on_alloc=0",
    # Accounting in every fork and page fault; nothing here is limited.
    "cgroup_disable=memory",
    # systemd waits for a grace period with each cgroup and sandbox it makes.
    "rcupdate.rcu_expedited=1",
    # No AF_VSOCK in these machines: systemd needn't load three modules to find that out.
    "systemd.ssh_auto=no",
    # The hardware database, users and catalogs are the image's: nothing to be made at a first boot.
    "systemd.condition_needs_update=no",
    # What udev would load for q35's parts and the CPU's features, and nothing here needs. Unpacking
    # and linking a module is slow under emulation, and so are emulated vector instructions.
    "modprobe.blacklist=kvm_amd,kvm_intel,ahci,aesni_intel,ghash_clmulni_intel,crct10dif_pclmul,"
    "crc32_pclmul,sha1_ssse3,sha256_ssse3,sha512_ssse3,vmw_vmci,efi_pstore",
)
"""Not needed, but worth almost half of a boot under TCG."""

OWN_BASE_ARGS = (
    # It has no policy: no AppArmor, SELinux and BPF hooks in every fork, open and page fault, and
    # no program for the kernel to verify when systemd finds the BPF ones.
    "lsm=lockdown,yama,landlock",
    # Each is a program in the way of sshd, for file systems that measure and debug (a test that
    # wants one mounts it) and for what nobody gives these machines: rules for udev, leases to keep.
    "systemd.mask=dev-hugepages.mount",
    "systemd.mask=dev-mqueue.mount",
    "systemd.mask=sys-kernel-debug.mount",
    "systemd.mask=sys-kernel-tracing.mount",
    "systemd.mask=systemd-udev-load-credentials.service",
    "systemd.mask=systemd-networkd-persistent-storage.service",
)
"""For images on our own base; what stands on another one may need each of these."""

CONSOLE_LINES = 20


class Stage(StrEnum):
    PROCESS = "process"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    INITRD = "initrd"
    USERSPACE = "userspace"
    SSHD = "sshd"
    LOGIN = "login"

    @property
    def rank(self) -> int:
        return list(Stage).index(self)


LIMITS: Mapping[Stage, float] = {
    Stage.PROCESS: 10,
    Stage.FIRMWARE: 20,
    Stage.KERNEL: 20,
    Stage.INITRD: 30,
    Stage.USERSPACE: 45,
    Stage.SSHD: 15,
    Stage.LOGIN: 15,
}
"""Seconds that a machine with KVM may stay in each stage; TCG multiplies them by `TCG_FACTOR`."""
TCG_FACTOR = 3.0


def limits(factor: float) -> dict[Stage, float]:
    return {stage: seconds * factor for stage, seconds in LIMITS.items()}


class Doom(StrEnum):
    """Why waiting longer is pointless; the value is how it is said."""

    PANIC = "the guest's kernel panicked"
    NO_ROOT = "the initrd cannot set up the root"
    EMERGENCY = "the guest is in an emergency shell"
    NO_BOOT = "the firmware found nothing to boot"
    DENIED = "the firmware refused a boot loader or kernel (Secure Boot)"
    DEAD = "QEMU ended"


class MachineStuck(BootcError):
    """A machine did not come up. `stage` is how far it got; `doom` says why, when that is known."""

    def __init__(
        self,
        name: str,
        stage: Stage,
        seconds: float,
        console: str,
        *,
        doom: Doom | None = None,
        detail: str = "",
        log: Path | None = None,
        speed: float = 1.0,
        doing: str | None = None,
    ) -> None:
        self.stage = stage
        self.seconds = seconds
        self.console = console
        self.doom = doom
        said = f"stuck in {doing or stage} for {seconds:.0f} s"
        if doom is not None:
            said = f"{doom} (in stage {stage}, after {seconds:.1f} s)"
        if speed < 0.7:
            said += f" (this host is busy: a machine gets {speed:.0%} of the CPU it wants)"
        text = f"{name}: {said}{': ' + detail if detail else ''}"
        if console:
            text += "\nlast lines of its console:\n" + _indent(console)
        super().__init__(text, hint=None if log is None else f"read the whole console: less {log}")


def _indent(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines())


_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC … BEL
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    r"|\x1b[ -/]*[0-~]"  # two bytes
    r"|\]104\x07"  # what systemd's reset sequence leaves of an OSC
    r"|[\x00-\x08\x0b-\x1f\x7f]"
)


def plain(text: str) -> str:
    """Console text without terminal control, for people and for the patterns below."""
    return _ESCAPES.sub("", text.replace("\r\n", "\n"))


_SIGNS: tuple[tuple[Stage, re.Pattern[str]], ...] = (
    (
        Stage.USERSPACE,
        re.compile(
            r"^Welcome to (?!.*(?:Initramfs|initramfs|initrd|dracut)).*!\s*$"
            r"|\blogin: $|systemd\[1\]: .*running in system mode(?!.*initrd)"
            r"|Switching root|switch_root",
        ),
    ),
    (
        Stage.INITRD,
        re.compile(
            r"bootc-initrd: |\bdracut(?:-[a-z-]+)?\[\d+\]|\bdracut: |dracut-\d+"
            r"|^Welcome to .*(?:[Ii]nitramfs|initrd)|Run /init as init process|Running in initrd",
        ),
    ),
    (Stage.KERNEL, re.compile(r"Linux version \d|^\[ {0,4}\d+\.\d{6}\] |EFI stub: ")),
    (Stage.FIRMWARE, re.compile(r"BdsDxe: |systemd-boot|GNU GRUB|SeaBIOS|iPXE|boot\.c:")),
)

_SSHD = re.compile(r"(?:Started|Listening on) sshd?\.(?:service|socket)")
_RESTARTED = re.compile(r"Linux version \d|BdsDxe: |systemd-boot|GNU GRUB|^Welcome to ")

_DOOMS: tuple[tuple[Doom, re.Pattern[str]], ...] = (
    (
        Doom.NO_ROOT,
        re.compile(r"bootc-initrd: cannot boot|bootc-setup-root: (?!composefs:|transient:)"),
    ),
    (Doom.PANIC, re.compile(r"Kernel panic - not syncing")),
    (
        Doom.EMERGENCY,
        re.compile(
            r"You are in emergency mode|Entering emergency mode|Generating \"/run/initramfs/rdsos"
            r"|Cannot open access to console, the root account is locked"
            r"|dracut: FATAL|dracut: Refusing"
        ),
    ),
    (
        Doom.DENIED,
        re.compile(
            r"(?:BdsDxe: failed to|boot\.c:|Error loading|Failed to start).*[Aa]ccess [Dd]enied"
        ),
    ),
    (
        Doom.NO_BOOT,
        re.compile(r"BdsDxe: No bootable option|No bootable device|Boot Failed\. |^Shell> "),
    ),
)


@dataclass(slots=True)
class ConsoleReader:
    """Follows console text, given in pieces of any size: the stage that was reached, and any doom.

    Only whole lines are judged, plus the unfinished one at the end, again with each piece: a login
    prompt has no newline.
    """

    stage: Stage = Stage.PROCESS
    doom: Doom | None = None
    doom_line: str = ""
    prompt: bool = False
    """Whether a login prompt was seen."""
    sshd: bool = False
    """Whether systemd said that it started an sshd."""
    powered_off: bool = False
    """Whether the kernel said that it powers the machine off."""
    shutting_down: bool = False
    """Given as True when the machine still runs its old boot: until the new one begins, no line
    counts as a stage."""
    _partial: str = ""

    def feed(self, text: str) -> None:
        lines = (self._partial + text).split("\n")
        self._partial = lines[-1][-4096:]
        for line in lines:
            self._judge(plain(line.rstrip("\r")))

    def _judge(self, line: str) -> None:
        for doom, pattern in _DOOMS:
            if self.doom is None and pattern.search(line):
                self.doom = doom
                self.doom_line = line.strip()
        self.powered_off = self.powered_off or "reboot: Power down" in line
        if self.shutting_down:
            if not _RESTARTED.search(line):
                return
            self.shutting_down = False
        self.prompt = self.prompt or line.endswith("login: ")
        self.sshd = self.sshd or _SSHD.search(line) is not None
        for stage, pattern in _SIGNS:
            if stage.rank <= self.stage.rank:
                return
            if pattern.search(line):
                self.stage = stage
                return


@dataclass(slots=True)
class Progress:
    """The stages a machine has been through, each with its time since the start in seconds.

    `began` is a `time.monotonic()`; `since` is when the present stage began.
    """

    began: float = field(default_factory=time.monotonic)
    stage: Stage = Stage.PROCESS
    since: float = 0.0
    spent: float = 0.0
    """How much of the stage's limit is used up: seconds, fewer on a host that is busy elsewhere."""
    times: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.since = self.began
        self.times[self.stage.value] = 0.0

    def reach(self, stage: Stage, now: float | None = None) -> bool:
        """Note that `stage` was reached; False when it was reached before."""
        if stage.rank <= self.stage.rank:
            return False
        self.since = time.monotonic() if now is None else now
        self.stage = stage
        self.spent = 0.0
        self.times[stage.value] = round(self.since - self.began, 3)
        return True

    def spend(self, seconds: float, speed: float) -> None:
        """Count `seconds` of waiting, in which the machine got `speed` (0 to 1) of a CPU."""
        self.spent += seconds * speed

    def stuck_for(self, now: float | None = None) -> float:
        return (time.monotonic() if now is None else now) - self.since


# A console that says nothing for so many seconds does not tell when sshd starts. Nor does one that
# still talks so many seconds after userspace began (emulated: times the factor).
_SILENCE = 5.0
_USERSPACE_TELLS = 5.0


def may_have_sshd(
    console: ConsoleFile, progress: Progress, factor: float, now: float | None = None
) -> bool:
    """Whether an sshd may run though no line on the console told of it."""
    now = time.monotonic() if now is None else now
    if console.reader.prompt or now - console.heard > _SILENCE:
        return True
    in_userspace = progress.stage.rank >= Stage.USERSPACE.rank
    return in_userspace and progress.stuck_for(now) > _USERSPACE_TELLS * factor


def host_speed() -> float:
    """The share of the CPUs' time that a machine gets at the host's present load, 0 to 1.

    A limit is meant for a host of our own: with five times more work than CPUs, a boot that takes
    five times as long is not stuck.
    """
    return min(1.0, len(os.sched_getaffinity(0)) / max(os.getloadavg()[0], 0.1))


def last_lines(console: Path, count: int = CONSOLE_LINES) -> str:
    """The end of a console log, readable."""
    try:
        with console.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 64 * 1024))
            text = plain(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:])


@dataclass(slots=True)
class ConsoleFile:
    """The console's log file, read on from `offset`."""

    path: Path
    offset: int = 0
    reader: ConsoleReader = field(default_factory=ConsoleReader)
    heard: float = field(default_factory=time.monotonic)
    """When it last said something, or when we began to listen."""

    def poll(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(1 << 20)
        except FileNotFoundError:
            return
        self.offset += len(data)
        if data:
            self.heard = time.monotonic()
            self.reader.feed(data.decode(errors="replace"))
