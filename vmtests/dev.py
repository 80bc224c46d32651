# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The development machine `bootc-dev`: one a checkout, installed from the image that was built.

Its disk is an overlay of an installed disk, in `.bootc/machines/bootc-dev`, and stays over
`bcvk-down`; it is made anew, aloud, when the image or an option that shapes the disk changed.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootc.errors import BootcError
from bootc.jsonutil import pretty, read_object
from bootc.log import step
from vmtests import disk, firmware, hypervisor, image, lease, machine, paths, tree
from vmtests.axes import Firmware
from vmtests.content import Inputs
from vmtests.disk import BaseDisk
from vmtests.domain import Disk, DiskFormat, MachineSpec, Uefi
from vmtests.image import BuiltImage
from vmtests.options import BcvkInstallOpts
from vmtests.qcow2 import make_qcow2
from vmtests.session import Session, open_session

_log = logging.getLogger(__name__)

NAME = "bootc-dev"
ROOT = "dev"


def folder() -> Path:
    return paths.MACHINES / NAME


def runtime_root() -> Path:
    return hypervisor.runtime_root(paths.CHECKOUT, ROOT)


def find_running() -> lease.Lease | None:
    """The record of the development machine, if it runs."""
    found = lease.find_lease(runtime_root(), NAME)
    return found if found is not None and found.is_running() else None


def installed_spec(
    base: BaseDisk, where: Path, *, name: str, session: Session, keep_disk: bool = False
) -> MachineSpec:
    """A machine that boots an overlay of `base` by its firmware; its files lie in `where`."""
    where.mkdir(parents=True, exist_ok=True)
    overlay = where / "disk.qcow2"
    if not (keep_disk and overlay.exists()):
        overlay.unlink(missing_ok=True)
        make_qcow2(overlay, backing=base.path)
        (where / "efivars.fd").unlink(missing_ok=True)
    opts = session.opts
    secure = opts.firmware is Firmware.SECURE
    kept = where / "efivars.fd"
    if kept.exists():
        boot = Uefi(code=firmware.need_firmware(secure=secure).code, vars=kept, secure=secure)
    else:
        boot = firmware.prepare_uefi(where, secure=secure)
    return MachineSpec(
        name=name,
        boot=boot,
        console=where / "console.log",
        disks=(Disk(path=overlay, format=DiskFormat.QCOW2, serial="root", bootindex=1),),
        memory_mib=opts.memory,
        vcpus=opts.vcpus,
        accel=session.accel(),
    )


def _present() -> dict[str, str]:
    """The inputs of the disk that is there, or nothing."""
    try:
        text = (folder() / "inputs.json").read_bytes()
    except FileNotFoundError:
        return {}
    table = read_object(text, str(folder() / "inputs.json"))
    return {name: table.text(name) for name in table.value}


def up(opts: BcvkInstallOpts, *, replace: bool = False) -> dict[str, float]:
    """Have the development machine running on an up-to-date disk. Returns the boot's timings.

    Running already on the same image and options: nothing is done, and the timings are empty.
    """
    running = find_running()
    built = image.build_image(opts)
    image.check_image(built, opts)
    inputs = disk.disk_inputs(built, opts)
    changes = inputs.changes(_present())
    if running is not None and not changes:
        return {}
    if running is not None and not replace:
        raise BootcError(
            f"{NAME} runs on another image or other options: {'; '.join(changes)}",
            hint="put the edited bootc/ into it: ./dev invoke bcvk-sync; "
            "or start it anew: ./dev invoke bcvk-up --replace (its disk is made anew)",
        )
    if running is not None:
        down()
    with open_session(opts, ROOT) as session:
        if changes and _present():
            _log.info("the disk of %s is made anew: %s", NAME, "; ".join(changes))
        if changes:
            _make_disk(built, inputs, session)
        base = BaseDisk(path=folder() / "base.qcow2", key=inputs.key, size=opts.disk_size)
        spec = installed_spec(base, folder(), name=NAME, session=session, keep_disk=True)
        labels = {"image": built.id, **built.labels}
        with machine.start_machine(
            session.hypervisor(), spec, key=session.key, persistent=True, labels=labels
        ) as started:
            return dict(started.timings)


def _make_disk(built: BuiltImage, inputs: Inputs, session: Session) -> None:
    with disk.installed_disk(built, session.opts, session.accel(), session.hypervisor) as base:
        shutil.rmtree(folder(), ignore_errors=True)
        folder().mkdir(parents=True)
        # A second name: the overlay's base stays when the cache forgets its entry.
        (folder() / "base.qcow2").hardlink_to(base.path)
    (folder() / "inputs.json").write_text(pretty(dict(inputs.digests)))


def shell(command: str | None = None) -> int:
    """A shell in the running machine, or one command; returns its exit status."""
    with machine.attach_machine(runtime_root(), NAME) as running:
        if command is None and not sys.stdin.isatty():
            _log.info("%s is ready; there is no terminal here for a shell", NAME)
            return 0
        return running.shell(command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is known of the development machine without looking into it."""

    running: bool
    port: int | None
    pid: int | None
    image: str | None
    console: str
    disk: int | None
    """Bytes of the overlay on the host, or None when there is no disk."""
    seconds: float | None
    """How long it has been running."""

    def to_json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


def status() -> Status:
    running = find_running()
    overlay = folder() / "disk.qcow2"
    pid = running.qemu.pid if running is not None and running.qemu is not None else None
    return Status(
        running=running is not None,
        port=None if running is None else running.port,
        pid=pid,
        image=_present().get("image"),
        console=str(folder() / "console.log"),
        disk=overlay.stat().st_blocks * 512 if overlay.exists() else None,
        seconds=None if pid is None else time.time() - Path(f"/proc/{pid}").stat().st_ctime,
    )


def down() -> bool:
    """End the development machine in order; whether it was running. Its disk stays."""
    if find_running() is None:
        return False
    with step(f"shut {NAME} down"), machine.attach_machine(runtime_root(), NAME) as running:
        running.power_off()
    return True


def restart() -> Mapping[str, float]:
    """Reboot the development machine and wait until it is up."""
    with step(f"reboot {NAME}"), machine.attach_machine(runtime_root(), NAME) as running:
        return running.reboot()


def clean() -> list[str]:
    """End every machine of this checkout and remove their disks; returns what was ended."""
    ended = []
    for base in hypervisor.recorded_bases(paths.CHECKOUT):
        for root in lease.iter_roots(base):
            for found in lease.read_leases(root):
                _end(root, found)
                ended.append(found.name)
        shutil.rmtree(base, ignore_errors=True)
    shutil.rmtree(paths.MACHINES, ignore_errors=True)
    return ended


def _end(root: Path, found: lease.Lease) -> None:
    if not found.uri.startswith(hypervisor.EMBEDDED):
        with hypervisor.open_hypervisor(found.uri, root) as daemon:
            daemon.destroy(found.name)
    lease.end_machine(root, found)


def ephemeral(opts: BcvkInstallOpts, command: str | None = None) -> int:
    """A machine that runs the image's own tree, without an install, gone with its shell."""
    built = image.build_image(opts)
    image.check_image(built, opts)
    with (
        open_session(opts) as session,
        tree.exported(built) as files,
        tempfile.TemporaryDirectory(prefix="ephemeral-") as scratch,
    ):
        spec = disk.tree_spec(
            files, Path(scratch), name="bootc-ephemeral", accel=session.accel(), opts=opts
        )
        with machine.start_machine(session.hypervisor(), spec, key=session.key) as running:
            if command is None and not sys.stdin.isatty():
                raise BootcError(
                    "an ephemeral machine is gone with its shell, and there is no terminal here",
                    hint="give a command: ./dev invoke bcvk-ephemeral -- uname -r",
                )
            return running.shell(command)
