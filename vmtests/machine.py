# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A running virtual machine: started until root is logged in, used, and ended with its block.

`start_machine` boots and yields a `Machine`; `attach_machine` reaches one that an earlier process
left running on purpose (`persistent=True`), without libvirt, so that any number of processes can.
`timings` holds, per stage of `vmtests.readiness`, the seconds from the start to its first sign, and
`ready` for the first command's end.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bootc.errors import BootcError
from bootc.log import step
from vmtests import lease as leases
from vmtests import readiness, ssh
from vmtests.domain import NETDEV, Accel, MachineSpec, domain_xml
from vmtests.hypervisor import Domain, Hypervisor
from vmtests.lease import Lease
from vmtests.readiness import ConsoleFile, ConsoleReader, Doom, MachineStuck, Progress, Stage
from vmtests.ssh import Answer, Guest, GuestGone, KeyPair, OnOutput

_log = logging.getLogger(__name__)

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_IDENTITY = (
    f"{BOOT_ID}; count=$(systemctl show --property=SoftRebootsCount --value 2>/dev/null);"
    " echo ${count:-0}"
)
# The same of a machine that was just powered on, which made no soft reboot. By the shell's own
# means: under emulation each program that a login starts is a tenth of a second.
_FIRST_COMMAND = "read -r id </proc/sys/kernel/random/boot_id; echo $id; echo 0"
_POLL = 0.1


@dataclass(slots=True, kw_only=True)
class Machine:
    """One machine with an open login. Not for use by several threads at once."""

    root: Path
    lease: Lease
    accel: Accel
    domain: Domain | None = None
    limits: Mapping[Stage, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    identity: str = ""
    """Changes with every boot, soft reboots included."""
    _guest: Guest | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.lease.name

    @property
    def console(self) -> Path:
        return self.lease.console

    @property
    def port(self) -> int:
        if self.lease.port is None:
            raise BootcError(f"{self.name} has no SSH port", hint="start it again")
        return self.lease.port

    @property
    def guest(self) -> Guest:
        """The login; made anew when it was lost."""
        if self._guest is None or not self._guest.is_alive():
            if self.lease.key is None:
                raise BootcError(f"{self.name} was started without an SSH key")
            self.log_out()
            self._guest = ssh.connect(self.port, self.lease.key, timeout=self._limit(Stage.LOGIN))
        return self._guest

    def run(
        self,
        command: str,
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: bytes = b"",
        on_output: OnOutput | None = None,
    ) -> Answer:
        """`Guest.run`; `timeout` is as the caller gives it, never scaled."""
        return self.guest.run(
            command, timeout=timeout, check=check, stdin=stdin, on_output=on_output
        )

    def put(self, source: Path, target: str) -> None:
        self.guest.put(source, target)

    def get(self, source: str, target: Path) -> None:
        self.guest.get(source, target)

    def shell(self, command: str | None = None) -> int:
        return self.guest.shell(command)

    def is_running(self) -> bool:
        return self.lease.is_running()

    def log_out(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def log_in(self, opened: socket.socket, *, timeout: float) -> None:
        """Make `opened`, on which sshd answered, this machine's login."""
        self.log_out()
        if self.lease.key is None:
            raise BootcError(f"{self.name} was started without an SSH key")
        self._guest = ssh.connect(self.port, self.lease.key, timeout=timeout, opened=opened)

    def read_identity(self, *, timeout: float = 60.0) -> str:
        """Ask the guest which boot this is."""
        return self.run(_IDENTITY, timeout=timeout).stdout.strip()

    def reboot(self, command: str = "systemctl reboot") -> dict[str, float]:
        """Run `command`, which makes the machine boot again, and wait until it did.

        Works for soft reboots too. Returns the new boot's timings (from the command on).
        """
        if not self.identity:
            self.identity = self.read_identity()
        with suppress(GuestGone):
            self.run(f"nohup sh -c 'sleep 0.1; {command}' >/dev/null 2>&1 &", check=False)
        return self.wait_rebooted()

    def wait_rebooted(self) -> dict[str, float]:
        """Wait until the machine is up with another boot than `identity`; returns the timings."""
        size = self.console.stat().st_size if self.console.exists() else 0
        console = ConsoleFile(self.console, size, ConsoleReader(shutting_down=True))
        progress = Progress()
        waiting = _Waiting(self, progress, console, not_before=self.identity or None)
        # A guest that reboots may never close its connections: the console tells as well.
        while self._guest is not None and self._guest.is_alive() and console.reader.shutting_down:
            waiting.check_health()
            waiting.spend()
            if progress.spent > self._limit(Stage.USERSPACE):
                raise waiting.stuck(doing="shutdown")
            time.sleep(_POLL)
        self.log_out()
        progress.spent = 0.0
        progress.since = time.monotonic()
        waiting.until_ready()
        return progress.times

    def power_off(self, *, timeout: float = 60.0) -> None:
        """Shut the guest down in order; after `timeout` seconds the plug is pulled.

        QEMU outlives its guest as long as nobody holds the hypervisor: the console tells the end.
        """
        console = ConsoleFile(self.console, self.console.stat().st_size)
        with suppress(BootcError):
            self.run("nohup sh -c 'sleep 0.1; systemctl poweroff' >/dev/null 2>&1 &", check=False)
        self.log_out()
        deadline = time.monotonic() + timeout
        while self.is_running() and not console.reader.powered_off and time.monotonic() < deadline:
            time.sleep(_POLL)
            console.poll()
        if self.is_running() and not console.reader.powered_off:
            _log.warning("%s did not shut down in %.0f s: pulling the plug", self.name, timeout)
        self.destroy()

    def destroy(self) -> None:
        """Pull the plug. Harmless when the machine is off."""
        self.log_out()
        if self.domain is not None:
            self.domain.destroy()
        leases.end_machine(self.root, self.lease)

    def save(self, path: Path) -> None:
        """Log out and write the memory to `path`; the machine is gone afterwards."""
        if self.domain is None:
            raise BootcError(f"{self.name} was started by another process, and cannot be saved")
        self.log_out()
        self.domain.save(path)
        leases.end_machine(self.root, replace(self.lease, scratch=None))

    def console_tail(self, count: int = readiness.CONSOLE_LINES) -> str:
        return readiness.last_lines(self.console, count)

    def _limit(self, stage: Stage) -> float:
        limits = self.limits or readiness.LIMITS
        return limits[stage]


@dataclass(slots=True)
class _Waiting:
    """One wait for a machine to come up."""

    machine: Machine
    progress: Progress
    console: ConsoleFile
    not_before: str | None = None
    looked: float = field(default_factory=time.monotonic)
    prompt_spent: float = 0.0

    def stuck(
        self, *, doom: Doom | None = None, detail: str = "", doing: str | None = None
    ) -> MachineStuck:
        now = time.monotonic()
        total = now - self.progress.began
        return MachineStuck(
            self.machine.name,
            self.progress.stage,
            self.progress.stuck_for(now) if doom is None else total,
            self.machine.console_tail(),
            doom=doom,
            detail=detail,
            log=self.machine.console,
            speed=readiness.host_speed(),
            doing=doing,
        )

    def check_health(self) -> None:
        """Take in the console; raises when the machine cannot come up any more."""
        self.console.poll()
        reader = self.console.reader
        if self.progress.reach(reader.stage):
            _log.info("%s: %s", self.machine.name, reader.stage)
        if reader.doom is not None:
            time.sleep(0.3)  # the lines that explain it come right behind
            raise self.stuck(doom=reader.doom, detail=reader.doom_line)
        if not self.machine.is_running():
            said = _qemu_log(self.machine.root, self.machine.name)
            raise self.stuck(doom=Doom.DEAD, detail=said)

    def spend(self) -> None:
        now = time.monotonic()
        waited, speed = now - self.looked, readiness.host_speed()
        self.looked = now
        self.progress.spend(waited, speed)
        if self.console.reader.prompt:
            self.prompt_spent += waited * speed

    def check_limit(self) -> None:
        self.spend()
        limits, stage = self.machine.limits, self.progress.stage
        if self.progress.spent > limits[stage]:
            raise self.stuck()
        if stage is Stage.USERSPACE and self.prompt_spent > limits[Stage.SSHD]:
            raise self.stuck(
                detail="it shows a login prompt, but no sshd answers: is one enabled,"
                " and does the guest ask for an address by DHCP?"
            )

    def until_ready(self) -> None:
        """Return when the first command has run; raises `MachineStuck`."""
        key, port = self.machine.lease.key, self.machine.lease.port
        door = None if key is None or port is None else ssh.Door(port)
        hurried = False
        try:
            while True:
                self.check_health()
                self.check_limit()
                if door is None:
                    if self.progress.stage.rank >= Stage.USERSPACE.rank:
                        return
                    time.sleep(_POLL)
                    continue
                if self.console.reader.sshd and not hurried:
                    hurried = True
                    door.hurry()
                opened = door.poll(_POLL, knock=hurried or self.may_have_sshd())
                if opened is not None and self.try_login(opened):
                    return
        finally:
            if door is not None:
                door.close()

    def may_have_sshd(self) -> bool:
        factor = slowness(self.machine.accel)
        return readiness.may_have_sshd(self.console, self.progress, factor)

    def try_login(self, opened: socket.socket) -> bool:
        machine = self.machine
        self.reach(Stage.SSHD)
        try:
            machine.log_in(opened, timeout=self.patience())
            self.reach(Stage.LOGIN)
            if self.not_before is None:
                identity = machine.run(_FIRST_COMMAND, timeout=self.patience()).stdout.strip()
            else:
                identity = machine.read_identity(timeout=self.patience())
        except BootcError as error:
            _log.debug("%s: %s", machine.name, error)
            machine.log_out()
            return False
        if identity == self.not_before:
            machine.log_out()
            self.progress.stage = Stage.PROCESS  # the old boot answered once more
            return False
        machine.identity = identity
        self.progress.times["ready"] = round(time.monotonic() - self.progress.began, 3)
        return True

    def reach(self, stage: Stage) -> None:
        if self.progress.reach(stage):
            _log.info("%s: %s", self.machine.name, stage)

    def patience(self) -> float:
        return max(3.0, (self.machine.limits[self.progress.stage] - self.progress.spent))


def _qemu_log(root: Path, name: str) -> str:
    """The last thing that QEMU said, from libvirt's log of it."""
    try:
        lines = (root / "log/qemu" / f"{name}.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.startswith("qemu-system")]
    return said[-1][:300] if said else ""


def add_forward(domain: Domain) -> int:
    """Lead a port of 127.0.0.1, which the kernel chooses, to the guest's SSH; returns the port.

    The forward lives as long as this QEMU: a restored machine needs it anew.
    """
    said = domain.monitor(f"hostfwd_add {NETDEV} tcp:127.0.0.1:0-:22").strip()
    if said:
        raise BootcError(
            f"QEMU cannot forward a port to {domain.name}: {said}",
            hint="see what holds them: ss -ltn; sysctl net.ipv4.ip_local_port_range",
        )
    ports = forwarded_ports(domain.monitor("info usernet"))
    if not ports:
        raise BootcError(f"QEMU does not say which port it forwards to {domain.name}")
    return ports[-1]


def forwarded_ports(usernet: str) -> list[int]:
    """The host's ports that lead to the guest's port 22, from QEMU's `info usernet`."""
    rows = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\s", usernet)
    return [int(port) for port in rows]


@contextmanager
def start_machine(
    hypervisor: Hypervisor,
    spec: MachineSpec,
    *,
    key: KeyPair | None,
    persistent: bool = False,
    expires: float | None = None,
    scratch: Path | None = None,
    labels: Mapping[str, str] | None = None,
    limits: Mapping[Stage, float] | None = None,
    retries: int = 1,
) -> Iterator[Machine]:
    """Boot `spec` and yield it when root is logged in; with `key=None`, when userspace runs.

    The machine ends with the block, unless it is `persistent` and came up: then it stays until
    somebody ends it, or until `expires` (UNIX time). `scratch` is a folder that goes with it.
    Under TCG a kernel panic is tried again (`retries` times), which is said aloud: QEMU's emulation
    of several CPUs is not perfect.
    """
    limits = dict(limits or readiness.limits(slowness(spec.accel)))
    if key is not None and spec.authorized_key is None:
        spec = replace(spec, authorized_key=key.public)
    if hypervisor.qemu_version() < (8, 1, 0):
        spec = replace(spec, cx16=False)
    lease = Lease(
        name=spec.name,
        owner=leases.this_process(),
        persistent=persistent,
        expires=expires,
        uri=hypervisor.uri,
        key=None if key is None else key.private,
        console=spec.console,
        scratch=scratch,
        labels=labels or {},
    )
    machine = Machine(root=hypervisor.root, lease=lease, accel=spec.accel, limits=limits)
    claim_name(hypervisor, spec.name)
    keep = done = False
    try:
        with step(f"boot {spec.name}"):
            while not _boot(hypervisor, machine, spec, retry=retries > 0):
                retries -= 1
        keep = persistent
        yield machine
        done = True
    finally:
        if keep:
            machine.log_out()
        else:
            _end_after(hypervisor, machine, done=done)


def _end_after(hypervisor: Hypervisor, machine: Machine, *, done: bool) -> None:
    try:
        if not done and machine.lease.qemu is not None and not machine.lease.persistent:
            # What it was to make is given up: QEMU need not take the time to write its disks.
            leases.end_process(machine.lease.qemu, patience=0)
        end(hypervisor, machine)
    except BootcError as error:
        if done:
            raise
        # What went wrong before says more.
        _log.warning("%s%s", error, f" ({error.hint})" if error.hint else "")


def slowness(accel: Accel) -> float:
    """By how much the limits of a machine with KVM are multiplied."""
    return readiness.TCG_FACTOR if accel is Accel.TCG else 1.0


def claim_name(hypervisor: Hypervisor, name: str) -> None:
    """Refuse to start a second machine of that name under the same root."""
    running = leases.find_lease(hypervisor.root, name)
    if running is not None and running.is_running():
        raise BootcError(
            f"a machine called {name} runs already (started by process {running.owner.pid})",
            hint="end it first; for the development machine: ./dev invoke bcvk-down",
        )


def end(hypervisor: Hypervisor, machine: Machine) -> None:
    """End the machine by its name: also when its start was interrupted half way.

    One whose disks are thrown away with it need not take the time to write them.
    """
    machine.log_out()
    if machine.lease.scratch is not None and machine.lease.qemu is not None:
        leases.end_process(machine.lease.qemu, patience=0)
    hypervisor.destroy(machine.name)
    leases.end_machine(hypervisor.root, machine.lease)


def _boot(hypervisor: Hypervisor, machine: Machine, spec: MachineSpec, *, retry: bool) -> bool:
    """Boot once. False after a panic that is worth another try."""
    spec.console.parent.mkdir(parents=True, exist_ok=True)
    spec.console.unlink(missing_ok=True)
    progress = Progress()
    leases.write_lease(hypervisor.root, machine.lease)
    domain = hypervisor.create(spec.name, domain_xml(spec), persistent=machine.lease.persistent)
    adopt(hypervisor, machine, domain)
    waiting = _Waiting(machine, progress, ConsoleFile(spec.console))
    try:
        waiting.until_ready()
    except MachineStuck as stuck:
        if not (retry and stuck.doom is Doom.PANIC and machine.accel is Accel.TCG):
            raise
        _log.warning("%s\n%s: trying once more, as emulation can cause this", stuck, spec.name)
        machine.log_out()
        domain.destroy()
        machine.lease = replace(machine.lease, qemu=None, port=None)
        return False
    machine.timings = progress.times
    return True


def adopt(hypervisor: Hypervisor, machine: Machine, domain: Domain) -> None:
    """Give `machine` the QEMU that was just started for it: its process, its port, its lease."""
    machine.domain = domain
    process = domain.process()
    if process is None:
        said = _qemu_log(hypervisor.root, machine.name)
        raise BootcError(
            f"QEMU of {machine.name} is gone or not visible{': ' + said if said else ''}"
        )
    port = None if machine.lease.key is None else add_forward(domain)
    machine.lease = replace(machine.lease, qemu=process, port=port)
    leases.write_lease(hypervisor.root, machine.lease)


@contextmanager
def attach_machine(root: Path, name: str) -> Iterator[Machine]:
    """A persistent machine that runs already; it goes on running after the block."""
    lease = leases.find_lease(root, name)
    if lease is None or not lease.is_running():
        raise BootcError(f"{name} does not run", hint="start it: ./dev invoke bcvk-up")
    machine = Machine(
        root=root, lease=lease, accel=Accel.TCG, limits=readiness.limits(readiness.TCG_FACTOR)
    )
    try:
        yield machine
    finally:
        machine.log_out()
