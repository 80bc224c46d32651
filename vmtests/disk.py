# SPDX-License-Identifier: Apache-2.0 OR MIT
"""image → installed disk: the real installer, run in a machine booted from the image's own tree.

The host needs no root mounts, no vfat and no fs-verity, and what is tested is what ships. The
installer's machine has three disks: its root (`tree`), the image as an OCI layout, and the target.
The result is a qcow2 file in the cache, keyed by the image and every option that shapes a disk.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bootc.errors import BootcError, ProcessError
from bootc.log import step
from vmtests import cache, content, paths, ssh
from vmtests.axes import Stage
from vmtests.content import Inputs
from vmtests.domain import Accel, DirectKernel, Disk, DiskFormat, MachineSpec
from vmtests.hypervisor import Hypervisor
from vmtests.image import BuiltImage
from vmtests.machine import Machine, start_machine
from vmtests.options import BcvkInstallOpts
from vmtests.qcow2 import make_qcow2
from vmtests.readiness import FAST_ARGS, KERNEL_ARGS, OWN_BASE_ARGS
from vmtests.tree import OCI_TAG, ImageTree, exported

_log = logging.getLogger(__name__)

KIND = "disks"
INSTALLER_MEMORY = 1536
_INSTALL_LIMIT = 600.0
"""Seconds; under TCG on two cores an install takes some 40."""
_TARGET = "/dev/disk/by-id/virtio-target"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseDisk:
    """An installed disk, never written again: machines run on overlays of it."""

    path: Path
    key: str
    size: int
    """Bytes, virtual."""


def disk_inputs(image: BuiltImage, opts: BcvkInstallOpts) -> Inputs:
    """What an installed disk is made from."""
    return Inputs(
        {
            "image": image.id,
            "installer": content.text_digest(" ".join(installer_argv(opts))),
            **{name: value or "none" for name, value in opts.shaping(Stage.DISK).items()},
        }
    )


def installer_argv(opts: BcvkInstallOpts) -> list[str]:
    """The installer's command line in the guest."""
    argv = ["bootc", "install", "to-disk", *opts.install_args()]
    argv += [f"--karg={karg}" for karg in _kernel_args(opts) if karg not in opts.kargs]
    argv += ["--generic-image", "--source-imgref", f"oci:/run/layout/oci:{OCI_TAG}"]
    argv += ["--target-transport", "containers-storage", "--target-imgref", opts.base_img]
    return [*argv, _TARGET]


def _kernel_args(opts: BcvkInstallOpts) -> tuple[str, ...]:
    return (*KERNEL_ARGS, *FAST_ARGS, *(() if opts.base else OWN_BASE_ARGS))


def tree_spec(
    tree: ImageTree, scratch: Path, *, name: str, accel: Accel, opts: BcvkInstallOpts
) -> MachineSpec:
    """A machine that runs the image's own tree, on an overlay in `scratch`."""
    root = scratch / "root.qcow2"
    make_qcow2(root, backing=tree.tree, backing_format=DiskFormat.RAW)
    return MachineSpec(
        name=name,
        boot=DirectKernel(
            kernel=tree.kernel,
            initrd=tree.initrd,
            cmdline=" ".join(("root=/dev/vda rw", *_kernel_args(opts))),
        ),
        console=scratch / "console.log",
        disks=(Disk(path=root, format=DiskFormat.QCOW2),),
        memory_mib=opts.memory,
        vcpus=opts.vcpus,
        accel=accel,
    )


@dataclass(slots=True)
class _Told:
    """Passes the installer's lines on as they come, and keeps the last ones."""

    text: str = ""

    def __call__(self, data: bytes) -> None:
        self.text += data.decode("utf-8", "replace")
        *lines, self.text = re.split(r"[\r\n]+", self.text)
        for line in lines:
            if line.strip():
                _log.info("  %s", line)


def run_installer(machine: Machine, opts: BcvkInstallOpts) -> None:
    machine.run("mkdir -p /run/layout && mount -o ro /dev/vdb /run/layout && udevadm settle")
    argv = shlex.join(installer_argv(opts))
    try:
        machine.run(argv, timeout=_INSTALL_LIMIT, on_output=_Told())
    except ProcessError as error:
        said = error.stderr.strip().splitlines()
        reason = next((line for line in reversed(said) if line.startswith("error: ")), str(error))
        advice = next((line[6:] for line in reversed(said) if line.startswith("hint: ")), None)
        raise BootcError(
            f"the installer failed: {reason.removeprefix('error: ')}", hint=advice
        ) from error


def install_disk(
    hypervisor: Hypervisor, image: BuiltImage, opts: BcvkInstallOpts, accel: Accel, target: Path
) -> dict[str, float]:
    """Install `image` onto a new qcow2 file `target`; returns the seconds of each phase."""
    begin = time.monotonic()
    times: dict[str, float] = {}
    with exported(image) as tree, tempfile.TemporaryDirectory(prefix="install-") as folder:
        times["export"] = time.monotonic() - begin
        scratch = Path(folder)
        make_qcow2(target, size=opts.disk_size)
        spec = tree_spec(tree, scratch, name=f"bootc-install-{os.getpid()}", accel=accel, opts=opts)
        disks = (
            *spec.disks,
            Disk(path=tree.layout, readonly=True, serial="layout"),
            Disk(path=target, format=DiskFormat.QCOW2, serial="target"),
        )
        spec = replace(spec, disks=disks, memory_mib=max(opts.memory, INSTALLER_MEMORY))
        key = ssh.load_or_make_key(paths.STATE)
        start = time.monotonic()
        with start_machine(hypervisor, spec, key=key) as machine:
            times["boot"] = time.monotonic() - start
            with step("install"):
                start = time.monotonic()
                run_installer(machine, opts)
                times["install"] = time.monotonic() - start
            machine.run("sync")
    times["total"] = time.monotonic() - begin
    return times


def find_disk(image: BuiltImage, opts: BcvkInstallOpts) -> bool:
    """Whether the disk for `image` and `opts` is in the cache."""
    return cache.is_cached(KIND, disk_inputs(image, opts))


@contextmanager
def installed_disk(
    image: BuiltImage,
    opts: BcvkInstallOpts,
    accel: Accel,
    open_hypervisor: Callable[[], Hypervisor],
) -> Iterator[BaseDisk]:
    """The installed disk for `image` and `opts`, from the cache or installed now.

    `open_hypervisor` is called only when a machine is needed.
    """
    inputs = disk_inputs(image, opts)

    def make(folder: Path) -> None:
        with step("install the image onto a disk, in a machine"):
            times = install_disk(open_hypervisor(), image, opts, accel, folder / "disk.qcow2")
        said = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
        _log.info("installed: %s", said)

    with cache.entry(KIND, inputs, make) as folder:
        yield BaseDisk(path=folder / "disk.qcow2", key=inputs.key, size=opts.disk_size)
