# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Who owns a running virtual machine, written down so that a later process can end what was left.

A hypervisor root holds one `leases/NAME.json` for each machine. It is written *before* QEMU starts
and removed after QEMU ended, so that there is no moment at which a killed process leaves a machine
that nobody can find:

    name        the domain's name
    owner       {"pid", "start"} of the process that started it (start in ticks since boot)
    persistent  true: outlives its owner (the development machine)
    expires     UNIX time after which even a persistent machine may be ended, or null
    uri         the libvirt URI that it runs under
    qemu        {"pid", "start"} of QEMU, or null as long as it is unknown
    port        TCP port on 127.0.0.1 that leads to the guest's port 22, or null
    key         path of the SSH private key, or null
    console     path of the serial console's log
    scratch     a folder that is this machine's alone and goes with it, or null
    labels      text to text: whatever the caller wants to find again (image id, options, …)

A process is identified by its pid *and* its start time, so a reused pid is never mistaken for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import Reader, pretty, read_object

_QEMU_COMM = "qemu-system"

PID_FILES = "run/qemu"
"""Where the embedded driver keeps its pid files, under its root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process for as long as it lives: `start` tells it from a later one with the same pid."""

    pid: int
    start: int

    def is_alive(self) -> bool:
        return find_process(self.pid) == self


def find_process(pid: int) -> Process | None:
    """The live process `pid`; a zombie counts as gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid=pid, start=int(fields[19]))


def this_process() -> Process:
    found = find_process(os.getpid())
    if found is None:
        raise BootcError("/proc does not show this process", hint="mount -t proc proc /proc")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The record of one machine; the module's docstring says what the fields mean."""

    name: str
    owner: Process
    uri: str
    console: Path
    persistent: bool = False
    expires: float | None = None
    qemu: Process | None = None
    port: int | None = None
    key: Path | None = None
    scratch: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def is_running(self) -> bool:
        return self.qemu is not None and self.qemu.is_alive()

    def is_leftover(self, now: float | None = None) -> bool:
        """Whether nobody answers for the machine any more."""
        if self.expires is not None and (time.time() if now is None else now) > self.expires:
            return True
        return not self.persistent and not self.owner.is_alive()


def _path(root: Path, name: str) -> Path:
    return root / "leases" / f"{name}.json"


def write_lease(root: Path, lease: Lease) -> None:
    path = _path(root, lease.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    qemu = lease.qemu
    text = pretty(
        {
            "name": lease.name,
            "owner": {"pid": lease.owner.pid, "start": lease.owner.start},
            "persistent": lease.persistent,
            "expires": lease.expires,
            "uri": lease.uri,
            "qemu": None if qemu is None else {"pid": qemu.pid, "start": qemu.start},
            "port": lease.port,
            "key": None if lease.key is None else str(lease.key),
            "console": str(lease.console),
            "scratch": None if lease.scratch is None else str(lease.scratch),
            "labels": dict(lease.labels),
        }
    )
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(text)
    fresh.rename(path)


def remove_lease(root: Path, name: str) -> None:
    _path(root, name).unlink(missing_ok=True)


def _parse(reader: Reader) -> Lease:
    def process(table: Reader) -> Process:
        return Process(pid=table.integer("pid"), start=table.integer("start"))

    def path(name: str) -> Path | None:
        text = reader.optional_text(name)
        return None if text is None else Path(text)

    qemu = reader.optional_table("qemu")
    labels = reader.table("labels")
    expires = reader.value.get("expires")
    return Lease(
        name=reader.text("name"),
        owner=process(reader.table("owner")),
        persistent=reader.boolean("persistent"),
        expires=float(expires) if isinstance(expires, int | float) else None,
        uri=reader.text("uri"),
        qemu=None if qemu is None else process(qemu),
        port=reader.integer("port") if reader.has("port") else None,
        key=path("key"),
        console=Path(reader.text("console")),
        scratch=path("scratch"),
        labels={name: labels.text(name) for name in labels.value},
    )


def find_lease(root: Path, name: str) -> Lease | None:
    """The record of `name` under `root`; one that cannot be read is as good as none."""
    path = _path(root, name)
    try:
        return _parse(read_object(path.read_bytes(), str(path)))
    except (FileNotFoundError, FormatError):
        return None


def read_leases(root: Path) -> list[Lease]:
    """Every readable record under `root`, by name."""
    names = sorted(path.stem for path in (root / "leases").glob("*.json"))
    found = (find_lease(root, name) for name in names)
    return [lease for lease in found if lease is not None]


def refreshed(root: Path, lease: Lease) -> Lease:
    """`lease` with QEMU's process filled in, if libvirt's pid file knows one that is ours."""
    if lease.qemu is not None:
        return lease
    return replace(lease, qemu=find_qemu(root / PID_FILES, lease.name))


def find_qemu(folder: Path, name: str) -> Process | None:
    """The QEMU that libvirt's pid file `folder/NAME.pid` names.

    The file alone is not believed: the process must have been started for that guest.
    """
    try:
        pid = int((folder / f"{name}.pid").read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    mine = any(word.startswith(f"guest={name},".encode()) for word in argv)
    return find_process(pid) if mine else None


def reap_orphans(pause: float = 0.1) -> None:
    """For ever: take notice of the end of every QEMU that became our child when its parent ended.

    Other children are left to whoever started them, also those that nobody waits for because they
    became ours in the same way.
    """
    while True:
        waiting = pause
        # One that somebody else waits for may be gone at any moment.
        with suppress(ChildProcessError, FileNotFoundError, ProcessLookupError):
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if found is not None:
                # It is always the same one that is told of: behind another may stand a QEMU.
                theirs = not _is_qemu(str(found.si_pid))
                _reap_qemu(os.listdir("/proc") if theirs else [str(found.si_pid)])
                waiting = 5 * pause if theirs else 0
        time.sleep(waiting)


def _is_qemu(pid: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith(_QEMU_COMM)


def _reap_qemu(pids: Iterable[str]) -> None:
    for pid in pids:
        with suppress(ChildProcessError, FileNotFoundError, ProcessLookupError):
            if pid.isdigit() and _is_qemu(pid):
                os.waitpid(int(pid), os.WNOHANG)


def end_process(process: Process, *, patience: float = 5.0) -> None:
    """End `process`: a request, then force (at once, without `patience`); waits for the end."""
    attempts = [(signal.SIGTERM, patience), (signal.SIGKILL, 10.0)]
    for number, limit in attempts if patience > 0 else attempts[1:]:
        deadline = time.monotonic() + limit
        while process.is_alive():
            if time.monotonic() > deadline:
                break
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                return
            time.sleep(0.02)
        else:
            return
    raise BootcError(
        f"process {process.pid} does not end, not even by SIGKILL",
        hint=f"look at what it waits for: cat /proc/{process.pid}/stack",
    )


def end_machine(root: Path, lease: Lease) -> None:
    """End the machine of `lease` and remove what was its alone. Harmless when it is gone already.

    Only for the embedded driver: a daemon's machines are ended through the daemon.
    """
    qemu = refreshed(root, lease).qemu
    if qemu is not None:
        end_process(qemu)
    for suffix in ("pid", "xml"):
        (root / PID_FILES / f"{lease.name}.{suffix}").unlink(missing_ok=True)
    if lease.scratch is not None:
        shutil.rmtree(lease.scratch, ignore_errors=True)
    remove_lease(root, lease.name)


def sweep(root: Path) -> list[str]:
    """End every machine under `root` that nobody answers for any more; returns their names.

    Needs no libvirt, so it also works while another process has the root open.
    """
    ended = []
    for lease in read_leases(root):
        if lease.uri.startswith("qemu:///embed") and lease.is_leftover():
            end_machine(root, lease)
            ended.append(lease.name)
    return ended


def sweep_strays(root: Path) -> list[str]:
    """End QEMUs under `root` that have no record at all. The caller must hold the root's lock."""
    known = {lease.name for lease in read_leases(root)}
    ended = []
    for path in sorted((root / PID_FILES).glob("*.pid")):
        stray = find_qemu(path.parent, path.stem) if path.stem not in known else None
        if stray is not None:
            end_process(stray)
            path.unlink(missing_ok=True)
            path.with_suffix(".xml").unlink(missing_ok=True)
            ended.append(path.stem)
    return ended


def iter_roots(base: Path) -> Iterator[Path]:
    """The hypervisor roots in one checkout's runtime folder."""
    yield from sorted(path.parent for path in base.glob("*/leases") if path.is_dir())


def describe_process(pid: int) -> str:
    """`123 (command line)` for messages."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return str(pid)
    return f"{pid} ({' '.join(argv).strip()[:80]})"
