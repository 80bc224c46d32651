# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The disk of a new installation: plan its partitions, then write them.

The table is a GPT. In order, with partition types of the Discoverable Partitions Specification:

| partition | on | size |
|---|---|---|
| BIOS-BOOT | x86-64 | 1 MiB |
| EFI-SYSTEM | x86-64, aarch64, riscv64 | 1024 MiB, or what the user says |
| root | all; the type is the architecture's | the rest, or what the user says |

`plan_disk` only reads; it refuses what cannot work before anything is touched.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass

from bootc import process
from bootc.boot.esp import ESP_TYPE
from bootc.errors import BootcError
from bootc.install.options import (
    MIB,
    MIN_ESP_SIZE,
    DiskOptions,
    RootFilesystem,
)
from bootc.linux import blockdev
from bootc.log import show_size

BIOS_BOOT_TYPE = "21686148-6449-6e6f-744e-656564454649"
ROOT_TYPES = {
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "riscv64": "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
    "armv7l": "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
}
"""The root types of the architectures that systemd-boot runs on, by uname's machine."""

_APPEAR = 20.0
"""Seconds in which new partitions must have come to stay."""
_EDGES = 2 * MIB
"""For the table at both ends of the disk and the alignment."""
_FLUFF = 96 * MIB
"""What a root file system wants beyond its files: journal, inodes, state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPartition:
    """`size` is in bytes, None for the rest of the disk."""

    number: int
    name: str
    type: str
    size: int | None
    bootable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What `apply_disk` will write; `disk` is the kernel's name of `device`."""

    device: str
    disk: str
    size: int
    wipe: bool
    partitions: tuple[PlannedPartition, ...]
    filesystem: RootFilesystem
    root_uuid: str

    @property
    def esp(self) -> PlannedPartition:
        return next(part for part in self.partitions if part.type == ESP_TYPE)

    @property
    def root(self) -> PlannedPartition:
        return self.partitions[-1]

    def describe(self) -> list[str]:
        """One line for each partition."""
        lines = [f"disk {self.device} ({show_size(self.size)}){', wiped first' * self.wipe}"]
        for part in self.partitions:
            size = "the rest" if part.size is None else show_size(part.size)
            kind = f", {self.filesystem}, UUID {self.root_uuid}" if part is self.root else ""
            lines.append(f"  {part.number}: {part.name}, {size}, type {part.type}{kind}")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioned:
    """The nodes of the written partitions."""

    esp: str
    root: str


def sfdisk_script(plan: DiskPlan) -> str:
    """The input of sfdisk(8)."""
    lines = ["label: gpt", f"label-id: {uuid.uuid4()}"]
    for part in plan.partitions:
        fields = [f"type={part.type.upper()}", f'name="{part.name}"']
        if part.size is not None:
            fields.insert(0, f"size={part.size // MIB}MiB")
        if part.bootable:
            fields.append("bootable")
        lines.append(", ".join(fields))
    return "\n".join(lines) + "\n"


def layout(
    machine: str, *, esp_size: int, root_size: int | None = None
) -> tuple[PlannedPartition, ...]:
    """The partitions for an architecture; the root is the last."""
    if machine not in ROOT_TYPES:
        raise BootcError(
            f"no partition layout is known for {machine}",
            hint=f"known are {', '.join(ROOT_TYPES)}; make the file systems and use to-filesystem",
        )
    sizes: list[tuple[str, str, int | None]] = []
    if machine == "x86_64":
        sizes.append(("BIOS-BOOT", BIOS_BOOT_TYPE, MIB))
    sizes.append(("EFI-SYSTEM", ESP_TYPE, esp_size))
    sizes.append(("root", ROOT_TYPES[machine], root_size))
    return tuple(
        PlannedPartition(
            number=number, name=name, type=kind, size=size, bootable=kind == BIOS_BOOT_TYPE
        )
        for number, (name, kind, size) in enumerate(sizes, start=1)
    )


def plan_disk(
    options: DiskOptions,
    filesystem: RootFilesystem,
    *,
    image_size: int,
    machine: str | None = None,
) -> DiskPlan:
    """Plan the partitions of `options.device` for an image of about `image_size` bytes on disk.

    Refuses a disk that is too small, in use, or not empty without `wipe`.
    """
    info = blockdev.need_block_device(options.device)
    disk = blockdev.disk_of(blockdev.device_number(info.st_rdev))
    node = os.path.realpath(options.device)
    if disk is None or os.path.exists(f"{blockdev.SYS_BLOCK}/{os.path.basename(node)}/partition"):
        raise BootcError(f"{options.device} is a partition, not a disk", hint="name the whole disk")
    if options.esp_size < MIN_ESP_SIZE:
        raise BootcError(
            f"an ESP of {show_size(options.esp_size)} is too small",
            hint=f"--esp-size {MIN_ESP_SIZE // MIB}M or more",
        )
    machine = machine or os.uname().machine
    parts = layout(machine, esp_size=options.esp_size, root_size=options.root_size)
    size = blockdev.size_of(node)
    _check_unused(options, node, disk)
    _check_size(options, size, parts, image_size)
    return DiskPlan(
        device=options.device,
        disk=disk,
        size=size,
        wipe=options.wipe,
        partitions=parts,
        filesystem=filesystem,
        root_uuid=str(uuid.uuid4()),
    )


def _check_size(
    options: DiskOptions, size: int, parts: tuple[PlannedPartition, ...], image_size: int
) -> None:
    root_needs = image_size + image_size // 10 + _FLUFF
    if options.root_size is not None and options.root_size < root_needs:
        raise BootcError(
            f"a root of {show_size(options.root_size)} is too small for this image",
            hint=f"--root-size {-(-root_needs // MIB)}M or more",
        )
    needed = sum(part.size or root_needs for part in parts) + _EDGES
    if size < needed:
        small = needed - options.esp_size + MIN_ESP_SIZE
        hint = f"use a disk of at least {-(-needed // MIB)} MiB"
        if size >= small:
            hint += f", or a smaller --esp-size (now {options.esp_size // MIB}M)"
        raise BootcError(
            f"{options.device} is too small: it has {show_size(size)}, and this image needs "
            f"{show_size(needed)} (ESP {show_size(options.esp_size)}, "
            f"root {show_size(options.root_size or root_needs)})",
            hint=hint,
        )


def _check_unused(options: DiskOptions, node: str, disk: str) -> None:
    names = blockdev.partition_names(disk)
    devices = {}
    for name in (disk, *names.values()):
        with open(f"{blockdev.SYS_BLOCK}/{name}/dev", encoding="ascii") as file:
            devices[file.read().strip()] = f"/dev/{name}"
    for mount in _all_mounts():
        if mount.device in devices or os.path.realpath(mount.source) in devices.values():
            used = devices.get(mount.device, mount.source)
            raise BootcError(f"{used} is mounted at {mount.target}", hint=f"umount {mount.target}")
    above = blockdev.holders(disk)
    if above:
        raise BootcError(
            f"{options.device} is in use by {', '.join(above)}",
            hint="close the RAID, LVM or LUKS device on it first",
        )
    table = blockdev.read_gpt(node)
    count = max(len(names), len(table or ()))
    if count and not options.wipe:
        raise BootcError(
            f"{options.device} has {count} partition{'s' * (count > 1)}",
            hint="--wipe if everything on it may be lost",
        )


def _all_mounts() -> list[blockdev.Mounted]:
    """The mounts of our namespace and, where that can be read, of pid 1's."""
    mounts = blockdev.read_mounts()
    try:
        return mounts + blockdev.read_mounts("/proc/1/mountinfo")
    except OSError:
        return mounts


def apply_disk(plan: DiskPlan) -> Partitioned:
    """Write the partition table and return the nodes of the partitions, once they are there."""
    hint = "install the package that has it (util-linux, fdisk)"
    process.need_program("sfdisk", hint=hint)
    node = os.path.realpath(plan.device)
    if plan.wipe:
        old = [f"/dev/{name}" for name in blockdev.partition_names(plan.disk).values()]
        process.run(["wipefs", "--all", "--quiet", *old, node], timeout=120)
    process.run(
        ["sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", node],
        stdin=sfdisk_script(plan),
        timeout=120,
    )
    names = _wait_for_partitions(plan, node)
    _verify(plan, node)
    return Partitioned(esp=f"/dev/{names[plan.esp.number]}", root=f"/dev/{names[plan.root.number]}")


def _wait_for_partitions(plan: DiskPlan, node: str) -> dict[int, str]:
    """The kernel's names of the partitions, once they stay.

    udev reads the table again when somebody who wrote to the disk closes it, and for that moment
    there are none. A kernel that reads no GPT itself is told of them.
    """
    want = {part.number for part in plan.partitions}
    deadline = time.monotonic() + _APPEAR
    while True:
        if os.path.exists("/run/udev/control"):
            # In a container it would say that it is in a chroot, and not wait.
            env = {"SYSTEMD_IGNORE_CHROOT": "1"}
            process.run(["udevadm", "settle", "--timeout=20"], timeout=60, check=False, env=env)
        names = blockdev.partition_names(plan.disk)
        if want <= set(names):
            break
        if time.monotonic() > deadline:
            raise BootcError(
                f"the kernel does not see the new partitions of {node}",
                hint=f"end what uses the old ones, or run `partx -u {node}`",
            )
        process.run(["partx", "--add", node], timeout=60, check=False)
        time.sleep(0.1)
    for number in want:
        blockdev.wait_for_node(f"/dev/{names[number]}")
    return names


def _verify(plan: DiskPlan, node: str) -> None:
    table = {part.number: part for part in blockdev.read_gpt(node) or ()}
    for part in plan.partitions:
        found = table.get(part.number)
        if found is None or found.type != part.type:
            raise BootcError(
                f"partition {part.number} of {node} has type {found.type if found else 'none'}, "
                f"not {part.type}"
            )
