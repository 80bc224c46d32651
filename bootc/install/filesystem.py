# SPDX-License-Identifier: Apache-2.0 OR MIT
"""File systems of a new installation: make, mount, ask for fs-verity, finish them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bootc import process
from bootc.install.options import RootFilesystem
from bootc.linux import blockdev, fsverity, libc, mount

_PACKAGES = {
    RootFilesystem.EXT4: "e2fsprogs",
    RootFilesystem.BTRFS: "btrfs-progs",
    RootFilesystem.XFS: "xfsprogs",
}


def mkfs_root_argv(filesystem: RootFilesystem, node: str, uuid: str) -> list[str]:
    """The command that makes the root file system."""
    match filesystem:
        case RootFilesystem.EXT4:
            return ["mkfs.ext4", "-q", "-F", "-O", "verity", "-U", uuid, "-L", "root", node]
        case RootFilesystem.BTRFS:
            return ["mkfs.btrfs", "-q", "-f", "-U", uuid, "-L", "root", node]
        case RootFilesystem.XFS:
            return ["mkfs.xfs", "-q", "-f", "-m", f"uuid={uuid}", "-L", "root", node]


def need_tools(filesystem: RootFilesystem) -> None:
    """Refuse when a program is missing that the install will run."""
    process.need_program(f"mkfs.{filesystem}", hint=f"install the package {_PACKAGES[filesystem]}")
    process.need_program("mkfs.fat", hint="install the package dosfstools")
    process.need_program("sfdisk", hint="install the package that has it (util-linux, fdisk)")


def make_root(filesystem: RootFilesystem, node: str, uuid: str) -> None:
    process.run(mkfs_root_argv(filesystem, node, uuid), timeout=600)


def make_esp(node: str) -> None:
    process.run(["mkfs.fat", "-F", "32", "-n", "EFI-SYSTEM", node], timeout=300)


@contextmanager
def mounted_target(node: str, filesystem: str) -> Iterator[str]:
    """The new root file system at a fresh folder, for as long as the block runs."""
    with mount.mounted_temporarily(node, filesystem) as target:
        yield target


def want_verity(folder: str) -> bool:
    """Whether the file system of `folder` has fs-verity, tried on a file without a name."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b"verity?")
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
    try:
        fsverity.enable(readable, fsverity.SHA512)
    except OSError as error:
        if fsverity.is_unsupported(error):
            return False
        raise
    finally:
        os.close(readable)
    return True


def finish_root(target: str) -> None:
    """Trim the file system, make it read-only and leave its journal empty."""
    blockdev.trim(target)
    libc.mount(None, target, None, mount.MS_REMOUNT | mount.MS_RDONLY)
    blockdev.freeze_and_thaw(target)


@contextmanager
def temporary_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bootc-install-") as folder:
        yield folder
