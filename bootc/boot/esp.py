# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The EFI system partition: where it is, and how to look into it without leaving a mount behind."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bootc import fs
from bootc.boot.loader_info import read_loader_variable
from bootc.errors import BootcError, FormatError
from bootc.linux import blockdev, libc, mount, newmount

ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
VFAT_OPTIONS: tuple[newmount.Option, ...] = (("fmask", "0177"), ("dmask", "0077"))
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NOEXEC = 0x8
_PATIENCE = 10.0
_PAUSE = 0.05
"""Seconds: how long a writer waits for readers, and between two tries."""


def find_esp(device: str) -> str | None:
    """The node of the first ESP on the disks below the block device `major:minor`.

    When those have none, the partition that the firmware started the boot loader from.
    """
    for disk in blockdev.backing_disks(device):
        found = find_on_disk(disk)
        if found is not None:
            return found
    uuid = read_loader_variable("LoaderDevicePartUUID")
    return _find_partition(uuid.lower()) if uuid else None


def find_on_disk(disk: str) -> str | None:
    """The node of the ESP on the disk of that kernel name (`vda`)."""
    return _find(disk, lambda part: part.type == ESP_TYPE)


def _find_partition(uuid: str) -> str | None:
    for disk in sorted(os.listdir("/sys/block")):
        found = _find(disk, lambda part: part.uuid == uuid)
        if found is not None:
            return found
    return None


def _find(disk: str, matches: Callable[[blockdev.GptPartition], bool]) -> str | None:
    try:
        table = blockdev.read_gpt(f"/dev/{disk}")
    except (OSError, FormatError):
        return None
    names = blockdev.partition_names(disk) if table else {}
    for part in table or []:
        if matches(part) and part.number in names:
            return f"/dev/{names[part.number]}"
    return None


@contextmanager
def mounted_esp(node: str, target: str) -> Iterator[str]:
    """The ESP at `target`, writable and for root's eyes only, for as long as the block runs.

    After a power cut it is repaired first: Linux makes a vfat read-only when it comes upon a name
    that leads nowhere, at each boot again. What the repair saved as files without a name are pieces
    of what we wrote when the cut came, and take the room of a kernel.
    """
    # Not at the top: `bootc status` only reads, and is quick because it imports little.
    from bootc.boot.esp_repair import fill_gaps, repair

    salvaged = repair(node)
    _make_writable(node)
    _mount_patiently(node, target)
    try:
        for name in salvaged:
            fs.remove_file(f"{target}/{name}")
        fill_gaps(node, target)
        yield target
    finally:
        # umount takes the mark away that it is not unmounted, and flushes nothing before.
        try:
            fs.sync_filesystem(target)
        finally:
            libc.umount2(target)


def _mount_patiently(node: str, target: str) -> None:
    """Mount it; a `bootc status` may have it mounted read-only for a moment, where nobody sees."""
    flags = mount.MS_NOSUID | mount.MS_NOEXEC | mount.MS_NODEV
    data = ",".join(f"{key}={value}" for key, value in VFAT_OPTIONS)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            libc.mount(node, target, "vfat", flags, data)
            return
        except OSError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(_PAUSE)
                continue
            hint = "the kernel module vfat must be there: `modprobe vfat`"
            if error.errno == errno.EBUSY:
                hint = f"something has {node} mounted read-only: `findmnt {node}`"
            raise BootcError(
                f"the ESP {node} cannot be mounted: {error.strerror}", hint=hint
            ) from error


def _make_writable(node: str) -> None:
    """A file system that is mounted read-only somewhere cannot be mounted writable again."""
    number = blockdev.device_number(blockdev.need_block_device(node).st_rdev)
    for found in blockdev.read_mounts():
        if found.device == number and "ro" in found.super_options:
            try:
                libc.mount(None, found.target, None, mount.MS_REMOUNT)
            except OSError as error:
                raise BootcError(
                    f"the ESP {node} is mounted read-only at {found.target} and stays so: "
                    f"{error.strerror}",
                    hint=f"mount -o remount,rw {found.target}",
                ) from error
            return


@contextmanager
def open_esp(node: str) -> Iterator[int]:
    """A directory fd on the ESP for reading.

    The file system is reached through the mount that exists, else through a read-only mount that
    is attached nowhere and ends with the block.
    """
    fd = _open_existing(node)
    if fd is None:
        fd = _open_detached(node)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_existing(node: str) -> int | None:
    number = blockdev.device_number(blockdev.need_block_device(node).st_rdev)
    for found in blockdev.read_mounts():
        if found.device == number and found.root == "/" and found.fstype == "vfat":
            try:
                return os.open(found.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
    return None


def _open_detached(node: str) -> int:
    options: list[newmount.Option] = [("source", node), *VFAT_OPTIONS]
    flags = newmount.MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
    try:
        try:
            detached = newmount.fsmount("vfat", [*options, ("ro", None)], attributes=flags)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # An upgrade has it mounted for writing, where we don't see it: share that file system.
            detached = newmount.fsmount("vfat", options, attributes=flags)
    except OSError as error:
        again = _open_existing(node)
        if again is not None:
            return again
        raise BootcError(
            f"the ESP {node} cannot be mounted: {error.strerror}",
            hint="load the kernel module vfat (modprobe vfat), and run as root",
        ) from error
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=detached)
    finally:
        os.close(detached)
