# SPDX-License-Identifier: Apache-2.0 OR MIT
"""libvirt: the URI that the user names, else the embedded QEMU driver with a root of its own.

The embedded driver needs no daemon. Its rules, which this module keeps:

* one process at a time has a root open (our own `ROOT/lock`, because libvirt's says not who), and
  one process opens one root in its life;
* the root's path is short: QEMU's monitor socket below it must stay under 108 bytes;
* machines are not ended with the connection (no autodestroy), so `vmtests.lease` records them and
  `open_hypervisor` first ends those whose owner is gone;
* libvirt needs a running event loop, and writes its own log into `ROOT/libvirt.log`, not on stderr.

libvirt's errors leave here as `BootcError`. Nothing else in the kit imports libvirt.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bootc.errors import BootcError
from bootc.linux import libc
from bootc.process import need_program
from vmtests import lease

EMBEDDED = "qemu:///embed"
_INSTALL_QEMU = "install it: apt-get install qemu-system-x86, dnf install qemu-system-x86-core"
_LONGEST_ROOT = 62
"""Bytes: 107 less `/lib/qemu/domain-NN-<20 letters>/monitor.sock`."""

_CONF = """\
{user}dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""

_loop_started = threading.Event()


def runtime_base(checkout: Path) -> Path:
    """The short folder that holds this checkout's hypervisor roots; made, and recorded for later.

    A later process may see another XDG_RUNTIME_DIR: `recorded_bases` knows all that were used.
    """
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    candidates = [named, "/run", "/tmp"]
    parent = next(path for path in candidates if path and os.access(path, os.W_OK | os.X_OK))
    digest = hashlib.sha256(os.fsencode(checkout.resolve())).hexdigest()[:8]
    base = Path(parent) / f"bootc-kit-{digest}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.geteuid():
        raise BootcError(
            f"{base} belongs to another user", hint="set XDG_RUNTIME_DIR to a folder of yours"
        )
    record = checkout / ".bootc" / "runtime-folders"
    if base not in recorded_bases(checkout):
        record.parent.mkdir(exist_ok=True)
        with record.open("a") as file:
            file.write(f"{base}\n")
    return base


def recorded_bases(checkout: Path) -> list[Path]:
    """Every runtime folder that this checkout ever used and that still exists."""
    try:
        lines = (checkout / ".bootc" / "runtime-folders").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [Path(line) for line in dict.fromkeys(lines) if line and Path(line).is_dir()]


def runtime_root(checkout: Path, name: str) -> Path:
    """The embedded driver's root called `name` (`dev`, `tmt`, …) of this checkout."""
    return runtime_base(checkout) / name


def sweep_checkout(checkout: Path) -> list[str]:
    """End the machines that dead processes of this checkout left, under whatever root."""
    ended: list[str] = []
    for base in recorded_bases(checkout):
        for root in lease.iter_roots(base):
            ended += lease.sweep(root)
    return ended


@dataclass(slots=True)
class Domain:
    """A machine as libvirt knows it."""

    hypervisor: Hypervisor
    name: str
    handle: Any

    def process(self) -> lease.Process | None:
        """QEMU's process, if we may look at it (the embedded driver, or a local daemon)."""
        return self.hypervisor.find_process(self.name)

    def is_running(self) -> bool:
        try:
            return bool(self.handle.isActive())
        except self.hypervisor.lv.libvirtError:
            return False

    def monitor(self, command: str) -> str:
        """Give QEMU's human monitor a command and return what it says."""
        hmp = self.hypervisor.lv_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        with self.hypervisor.translated(f"monitor command {command.split()[0]} of {self.name}"):
            said: str = self.hypervisor.lv_qemu.qemuMonitorCommand(self.handle, command, hmp)
        return said

    def save(self, path: Path) -> None:
        """Write the machine's memory to `path`; the machine is gone afterwards."""
        with self.hypervisor.translated(f"cannot save {self.name}"):
            self.handle.saveFlags(str(path), None, self.hypervisor.lv.VIR_DOMAIN_SAVE_RUNNING)

    def reset(self) -> None:
        """Press the reset button."""
        with self.hypervisor.translated(f"cannot reset {self.name}"):
            self.handle.reset(0)

    def destroy(self) -> None:
        """Pull the plug. Harmless when the machine is off already."""
        self.hypervisor.destroy(self.name)


@dataclass(slots=True)
class Hypervisor:
    """An open connection. `root` also holds the leases when a daemon runs the machines."""

    uri: str
    root: Path
    connection: Any
    lv: Any
    lv_qemu: Any

    @property
    def embedded(self) -> bool:
        return self.uri.startswith(EMBEDDED)

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """libvirt's exceptions as ours, and an interrupt in the middle of a call as itself."""
        try:
            yield
        except self.lv.libvirtError as error:
            raise BootcError(f"{what}: {error.get_error_message() or error}") from error
        except SystemError as error:
            # The bindings return to Python with what a signal handler raised still pending.
            raised = error.__cause__ or error.__context__
            if raised is None or isinstance(raised, Exception):
                raise
            raise raised from None

    def qemu_version(self) -> tuple[int, int, int]:
        number = self.versions()[0]
        return number // 1_000_000, number // 1000 % 1000, number % 1000

    def versions(self) -> tuple[int, int]:
        """QEMU's and libvirt's versions, as libvirt numbers them."""
        with self.translated("cannot ask for versions"):
            return int(self.connection.getVersion()), int(self.connection.getLibVersion())

    def create(self, name: str, xml: str, *, persistent: bool = False) -> Domain:
        """Start a transient machine from its XML."""
        flags = 0
        if not self.embedded and not persistent:
            flags |= self.lv.VIR_DOMAIN_START_AUTODESTROY
        with self.translated(f"cannot start {name}"):
            return Domain(self, name, self.connection.createXML(xml, flags))

    def saved_xml(self, path: Path) -> str:
        """The XML inside a saved machine."""
        with self.translated(f"cannot read {path}"):
            flags = self.lv.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
            text: str = self.connection.saveImageGetXMLDesc(str(path), flags)
        return text

    def restore(self, name: str, path: Path, xml: str) -> Domain:
        """Start a machine from saved memory, with `xml` in place of the XML that was saved."""
        with self.translated(f"cannot restore {name}"):
            self.connection.restoreFlags(str(path), xml, self.lv.VIR_DOMAIN_SAVE_RUNNING)
            return Domain(self, name, self.connection.lookupByName(name))

    def find(self, name: str) -> Domain | None:
        try:
            return Domain(self, name, self.connection.lookupByName(name))
        except self.lv.libvirtError:
            return None

    def find_process(self, name: str) -> lease.Process | None:
        """The QEMU of `name`, if it runs where we may see it."""
        folder = self.root / lease.PID_FILES if self.embedded else Path("/run/libvirt/qemu")
        return lease.find_qemu(folder, name)

    def destroy(self, name: str) -> None:
        """End a machine by its name, whatever state our side is in."""
        process = self.find_process(name) if self.embedded else None
        domain = self.find(name)
        if domain is not None:
            try:
                domain.handle.destroy()
            except self.lv.libvirtError as error:
                gone = (self.lv.VIR_ERR_OPERATION_INVALID, self.lv.VIR_ERR_NO_DOMAIN)
                if error.get_error_code() not in gone and process is None:
                    raise BootcError(f"cannot end {name}: {error}") from error
        if process is not None:
            lease.end_process(process)

    def names(self) -> list[str]:
        with self.translated("cannot list machines"):
            return sorted(domain.name() for domain in self.connection.listAllDomains())


@contextmanager
def open_hypervisor(uri: str | None, root: Path, *, patience: float = 20.0) -> Iterator[Hypervisor]:
    """Connect to `uri`, or to the embedded driver under `root` when it is None.

    Waits up to `patience` seconds for another process that has the root open. Ends leftovers of
    dead processes first. While it is open, SIGTERM and SIGHUP end the block like Ctrl-C does, so
    that machines are ended with it.
    """
    if (
        uri is not None
        and "+" in uri.split(":", 1)[0]
        and not uri.partition("://")[2].startswith("/")
    ):
        raise BootcError(
            f"{uri} is another computer, and the machines' disks are files of this one",
            hint="unset BOOTC_libvirt_uri, or name a local URI such as qemu:///system",
        )
    with ExitStack() as stack:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if uri is None:
            # libvirt would only say that it finds no capabilities.
            need_program("qemu-system-x86_64", hint=_INSTALL_QEMU)
            _check_root(root)
            stack.enter_context(_locked(root, patience))
            lease.sweep(root)
            lease.sweep_strays(root)
            _write_conf(root)
            uri = f"{EMBEDDED}?root={root}"
        lv, lv_qemu = _load(root / "libvirt.log")
        try:
            connection = lv.open(uri)
        except lv.libvirtError as error:
            raise BootcError(
                f"cannot open {uri}: {error.get_error_message()}",
                hint="./dev invoke doctor; or unset BOOTC_libvirt_uri for the embedded driver",
            ) from error
        stack.callback(connection.close)
        stack.enter_context(_ending_signals())
        hypervisor = Hypervisor(uri, root, connection, lv, lv_qemu)
        if not hypervisor.embedded:
            _sweep_daemon(hypervisor)
        yield hypervisor


def _sweep_daemon(hypervisor: Hypervisor) -> None:
    """The leftovers of dead processes under a daemon; autodestroy leaves only persistent ones."""
    for found in lease.read_leases(hypervisor.root):
        if found.uri == hypervisor.uri and found.is_leftover():
            hypervisor.destroy(found.name)
            lease.end_machine(hypervisor.root, found)


def _check_root(root: Path) -> None:
    if len(os.fsencode(root)) > _LONGEST_ROOT:
        raise BootcError(
            f"{root} is too long for the sockets below it ({_LONGEST_ROOT} bytes at most)",
            hint="set XDG_RUNTIME_DIR to a short path, such as /tmp",
        )


def _write_conf(root: Path) -> None:
    """The embedded driver's qemu.conf, and one capability cache for all roots of the checkout.

    Without `user` set, root's libvirt starts QEMU as another user, who may not read our files; and
    it probes both accelerators again at every start, which takes 12 s.
    """
    folder = root / "etc"
    folder.mkdir(exist_ok=True)
    user = 'user = "root"\ngroup = "root"\n' if os.geteuid() == 0 else ""
    (folder / "qemu.conf").write_text(_CONF.format(user=user))
    shared = root.parent / "cache"
    shared.mkdir(mode=0o700, exist_ok=True)
    if not (root / "cache").exists():
        (root / "cache").symlink_to(shared)


def _load(log: Path) -> tuple[Any, Any]:
    """Import libvirt, quietly, and start its event loop. Loaded here and not at the top because
    libvirt reads its logging settings when it is loaded, and because it may not be installed."""
    os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", f"3:file:{log}")
    try:
        lv: Any = importlib.import_module("libvirt")
        lv_qemu: Any = importlib.import_module("libvirt_qemu")
    except ImportError as error:
        raise BootcError(
            f"libvirt-python is not usable: {error}", hint="run `./dev`, which installs it"
        ) from error
    if not _loop_started.is_set():
        lv.registerErrorHandler(lambda _context, _error: None, None)
        lv.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, args=(lv,), name="libvirt", daemon=True).start()
        # libvirt puts QEMU into the background, and waits half a minute for one that ended until
        # its parent took notice. Process 1 of a container often never does, so we are the parent.
        libc.set_child_subreaper()
        threading.Thread(target=lease.reap_orphans, name="reaper", daemon=True).start()
        _loop_started.set()
    return lv, lv_qemu


def _run_events(lv: Any) -> None:
    while True:
        lv.virEventRunDefaultImpl()


@contextmanager
def _locked(root: Path, patience: float) -> Iterator[None]:
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _clash(root, descriptor, patience) from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _clash(root: Path, descriptor: int, patience: float) -> BootcError:
    said = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    holder = lease.describe_process(int(said)) if said.isdigit() else "an unknown process"
    return BootcError(
        f"{root} is in use by process {holder}, still after {patience:.0f} s",
        hint=f"wait until it is done, or end it: kill {said or 'PID'}",
    )


@contextmanager
def _ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the block, unless somebody else handles them already."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
