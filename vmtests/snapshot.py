# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The booted-memory cache: boot once, save the memory, and later be at a shell in about a second.

    CACHE/KEY/memory         libvirt's saved machine
    CACHE/KEY/diskN.qcow2    what the boot wrote, on top of the machine's own disk N; now read-only
    CACHE/KEY/efivars.fd     for a UEFI machine
    CACHE/KEY/manifest.json  {"files": {name: {"size", "sha256"}}, "identity", "timings",
                              "bases": {path: [size, mtime_ns]}}

An entry is built in a folder of another name, its manifest is written last, and the folder is then
renamed, so that a half-made entry is never seen. KEY covers QEMU's and libvirt's versions, the
host's CPU, the caller's disk key, the content of kernel and initrd, and the domain XML with the
machine's own paths taken out.

An entry that does not fit its manifest, whose base disks changed, that QEMU refuses or whose guest
does not answer is thrown away, aloud, and the machine boots: the cache can cost time, never truth.

What a restored machine shares with the boot that was saved: its name, boot id, machine id and host
keys. Its clock is set over SSH. One process restores one entry at a time, as libvirt ties the saved
memory to one name and uuid.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bootc.errors import BootcError, FormatError
from bootc.jsonutil import canonical, pretty, read_object
from bootc.log import step
from vmtests import lease as leases
from vmtests import readiness, ssh
from vmtests.domain import (
    DirectKernel,
    Disk,
    DiskFormat,
    MachineSpec,
    Uefi,
    domain_xml,
    restored_xml,
    target_name,
)
from vmtests.hypervisor import Hypervisor
from vmtests.machine import BOOT_ID, Machine, adopt, claim_name, end, slowness, start_machine
from vmtests.qcow2 import make_qcow2
from vmtests.ssh import KeyPair

_log = logging.getLogger(__name__)
_ANSWER_LIMIT = 10.0
"""Seconds for a restored guest to answer; it takes about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A valid entry."""

    folder: Path
    key: str

    @property
    def memory(self) -> Path:
        return self.folder / "memory"


def snapshot_key(hypervisor: Hypervisor, spec: MachineSpec, disk_key: str) -> str:
    """The entry's name for `spec`; `disk_key` stands for the content of all its disks."""
    disks = tuple(replace(d, path=Path(f"/disk{i}")) for i, d in enumerate(spec.disks))
    boot: DirectKernel | Uefi = spec.boot
    contents = {}
    match boot:
        case DirectKernel():
            contents["kernel"] = _sha256(boot.kernel)
            contents["initrd"] = "" if boot.initrd is None else _sha256(boot.initrd)
            boot = DirectKernel(kernel=Path("/kernel"), cmdline=boot.cmdline)
        case Uefi():
            contents["code"], contents["vars"] = _sha256(boot.code), _sha256(boot.vars)
            boot = Uefi(code=Path("/code"), vars=Path("/vars"), secure=boot.secure)
    neutral = replace(spec, disks=disks, boot=boot, console=Path("/console"), tags={})
    parts = {
        "format": 1,
        "hypervisor": list(hypervisor.versions()),
        "cpu": _host_cpu(),
        "disks": disk_key,
        "contents": contents,
        "xml": domain_xml(neutral),
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:32]


def _host_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    wanted = ("model name", "stepping", "microcode", "flags")
    return "\n".join(line for line in lines if line.startswith(wanted))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_snapshot(cache: Path, key: str) -> Snapshot | None:
    """The entry `key`, if it is whole: every file has the size and the content it was made with."""
    folder = cache / key
    path = folder / "manifest.json"
    try:
        manifest = read_object(path.read_bytes(), str(path))
        files = manifest.table("files")
        for name in files.value:
            wanted, found = files.table(name), folder / name
            if found.stat().st_size != wanted.integer("size"):
                raise FormatError(str(found), None, "has not the size it was saved with")
            if _sha256(found) != wanted.text("sha256"):
                raise FormatError(str(found), None, "has not the content it was saved with")
        bases = manifest.table("bases")
        for name, stamp in bases.value.items():
            if list(_stamp(Path(name))) != stamp:
                raise FormatError(name, None, "changed since the machine was saved")
    except FileNotFoundError as error:
        if folder.exists():
            _log.warning("the saved machine %s is incomplete (%s): booting", key, error.filename)
            drop_snapshot(cache, key)
        return None
    except (OSError, FormatError) as error:
        _log.warning("the saved machine %s is not usable (%s): booting", key, error)
        drop_snapshot(cache, key)
        return None
    os.utime(folder)
    return Snapshot(folder=folder, key=key)


def drop_snapshot(cache: Path, key: str) -> None:
    """Remove an entry; its manifest goes first, so that it is at no moment half there."""
    (cache / key / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(cache / key, ignore_errors=True)


def prune_snapshots(cache: Path, *, keep: int = 4) -> list[str]:
    """Remove all but the `keep` entries used last, and what interrupted builds left."""
    if not cache.is_dir():
        return []
    entries = sorted(
        (path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in cache.glob(".new-*"):
        pid = path.name.split("-")[1]
        if not pid.isdigit() or leases.find_process(int(pid)) is None:
            shutil.rmtree(path, ignore_errors=True)
    for path in entries[keep:]:
        drop_snapshot(cache, path.name)
    return [path.name for path in entries[keep:]]


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def booted_machine(
    hypervisor: Hypervisor,
    spec: MachineSpec,
    *,
    key: KeyPair,
    cache: Path,
    disk_key: str,
    scratch: Path,
    labels: Mapping[str, str] | None = None,
) -> Iterator[Machine]:
    """Yield a machine that has booted `spec`, from memory when that is possible.

    Its disks are overlays in `scratch`, a folder of this machine alone; the disks of `spec` are
    never written. `disk_key` must stand for their content. `timings` has `restore`,
    `sshd`, `login` and `ready` for a restored machine, the boot's stages otherwise.
    """
    if spec.authorized_key is None:
        spec = replace(spec, authorized_key=key.public)
    name = snapshot_key(hypervisor, spec, disk_key)
    claim_name(hypervisor, spec.name)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    found = find_snapshot(cache, name) or _try_build(
        hypervisor, spec, key=key, cache=cache, name=name
    )
    machine = None
    if found is not None:
        machine = _try_restore(hypervisor, spec, found, key=key, scratch=scratch, labels=labels)
        if machine is None:
            drop_snapshot(cache, name)
    if machine is not None:
        try:
            yield machine
        finally:
            end(hypervisor, machine)
        return
    cold = _on_overlays(spec, scratch)
    with start_machine(hypervisor, cold, key=key, scratch=scratch, labels=labels) as booted:
        yield booted


def _on_overlays(spec: MachineSpec, folder: Path) -> MachineSpec:
    """`spec` with every writable disk, and the UEFI variables, replaced by a copy in `folder`."""
    disks: list[Disk] = []
    for index, disk in enumerate(spec.disks):
        if not disk.readonly:
            path = folder / f"disk{index}.qcow2"
            make_qcow2(path, backing=disk.path, backing_format=disk.format)
            disk = replace(disk, path=path, format=DiskFormat.QCOW2)
        disks.append(disk)
    boot = spec.boot
    if isinstance(boot, Uefi):
        shutil.copyfile(boot.vars, folder / "efivars.fd")
        boot = replace(boot, vars=folder / "efivars.fd")
    return replace(spec, disks=tuple(disks), boot=boot)


def _try_build(
    hypervisor: Hypervisor, spec: MachineSpec, *, key: KeyPair, cache: Path, name: str
) -> Snapshot | None:
    """Boot, save, and put the entry in its place; None when the machine cannot be saved.

    A boot that fails is the caller's to know: it is raised.
    """
    folder = cache / f".new-{os.getpid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with start_machine(hypervisor, _on_overlays(spec, folder), key=key) as machine:
            machine.run("sync")
            timings, identity = machine.timings, machine.identity
            try:
                with step(f"save {spec.name}"):
                    machine.save(folder / "memory")
            except BootcError as error:
                _log.warning("%s; each test will boot", error)
                return None
        _write_manifest(folder, spec, timings=timings, identity=identity)
        try:
            folder.rename(cache / name)
        except OSError:  # another process was faster: its entry is as good
            return find_snapshot(cache, name)
        return Snapshot(folder=cache / name, key=name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_manifest(
    folder: Path, spec: MachineSpec, *, timings: Mapping[str, float], identity: str
) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = pretty(
        {
            "files": files,
            "bases": {str(disk.path.resolve()): list(_stamp(disk.path)) for disk in spec.disks},
            "identity": identity,
            "timings": dict(timings),
        }
    )
    fresh = folder / "manifest.new"
    fresh.write_text(text)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.rename(folder / "manifest.json")


def _try_restore(
    hypervisor: Hypervisor,
    spec: MachineSpec,
    snapshot: Snapshot,
    *,
    key: KeyPair,
    scratch: Path,
    labels: Mapping[str, str] | None,
) -> Machine | None:
    """The restored machine, answering; None (after a warning) when that cannot be had."""
    lease = leases.Lease(
        name=spec.name,
        owner=leases.this_process(),
        uri=hypervisor.uri,
        key=key.private,
        console=spec.console,
        scratch=scratch,
        labels=labels or {},
    )
    factor = slowness(spec.accel)
    machine = Machine(
        root=hypervisor.root, lease=lease, accel=spec.accel, limits=readiness.limits(factor)
    )
    try:
        _restore(hypervisor, spec, snapshot, machine, scratch)
    except BootcError as error:
        _log.warning("%s cannot be restored (%s): booting", spec.name, error)
        end(hypervisor, machine)
        scratch.mkdir(parents=True, exist_ok=True)
        return None
    except BaseException:
        end(hypervisor, machine)
        raise
    return machine


def _restore(
    hypervisor: Hypervisor,
    spec: MachineSpec,
    snapshot: Snapshot,
    machine: Machine,
    scratch: Path,
) -> None:
    began = time.monotonic()
    spec.console.parent.mkdir(parents=True, exist_ok=True)
    spec.console.write_text("(restored from memory: the console of the boot is not in this file)\n")
    disks = {}
    for index, disk in enumerate(spec.disks):
        if not disk.readonly:
            overlay = scratch / f"disk{index}.qcow2"
            make_qcow2(overlay, backing=snapshot.folder / f"disk{index}.qcow2")
            disks[target_name(index)] = overlay
    nvram = None
    if isinstance(spec.boot, Uefi):
        nvram = scratch / "efivars.fd"
        shutil.copyfile(snapshot.folder / "efivars.fd", nvram)
    xml = restored_xml(
        hypervisor.saved_xml(snapshot.memory), disks=disks, console=spec.console, nvram=nvram
    )
    leases.write_lease(hypervisor.root, machine.lease)
    adopt(hypervisor, machine, hypervisor.restore(spec.name, snapshot.memory, xml))
    machine.timings = {"restore": round(time.monotonic() - began, 3)}
    boot_id = _wake(machine, began)
    machine.identity = _read_identity(snapshot)
    if boot_id != machine.identity.partition("\n")[0]:
        raise BootcError(f"the guest is not the one that was saved: its boot id is {boot_id!r}")
    machine.timings["ready"] = round(time.monotonic() - began, 3)
    _log.info("restore %s: %.1f s", spec.name, machine.timings["ready"])


def _read_identity(snapshot: Snapshot) -> str:
    path = snapshot.folder / "manifest.json"
    return read_object(path.read_bytes(), str(path)).text("identity")


def _wake(machine: Machine, began: float) -> str:
    """Set the guest's clock, which stood still since it was saved; returns its boot id."""
    deadline = time.monotonic() + _ANSWER_LIMIT * slowness(machine.accel)
    door = ssh.Door(machine.port)
    try:
        while (opened := door.poll(0.05)) is None:
            if time.monotonic() > deadline:
                raise BootcError("the guest does not answer")
            if not machine.is_running():
                raise BootcError("QEMU ended")
    finally:
        door.close()
    machine.timings["sshd"] = round(time.monotonic() - began, 3)
    machine.log_in(opened, timeout=max(3.0, deadline - time.monotonic()))
    machine.timings["login"] = round(time.monotonic() - began, 3)
    return machine.run(f"date -s @{time.time():.3f} >/dev/null && {BOOT_ID}").stdout.strip()
