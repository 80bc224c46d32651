# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The plan of an install: everything that was decided, as one frozen value that can be printed.

Making the plan reads the machine and the image, and refuses what cannot work; nothing is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from uuid import UUID

from bootc import process
from bootc.boot import esp, systemd_boot
from bootc.deploy.image import ImageFacts
from bootc.deploy.unified import NOT_UNIFIED, Unify, can_share
from bootc.errors import BootcError
from bootc.install import filesystem as filesystems
from bootc.install.config import InstallConfig
from bootc.install.disk import DiskPlan, plan_disk
from bootc.install.options import (
    BlockSetup,
    DiskOptions,
    FilesystemOptions,
    InstallOptions,
    Replace,
    RootFilesystem,
)
from bootc.linux import blockdev
from bootc.log import show_size
from bootc.oci.model import this_platform
from bootc.oci.reference import CONTAINER_POLICY, ImageReference, parse_imgref
from bootc.podman.command import need_podman
from bootc.spec import Bootloader


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """`to-filesystem`: a mounted root and the ESP's node (or the folder where it is mounted)."""

    root: str
    esp_node: str | None
    esp_mount: str | None
    finalize: bool

    def describe(self) -> list[str]:
        where = f"mounted at {self.esp_mount}" if self.esp_mount else self.esp_node
        return [f"file system at {self.root}", f"  ESP: {where}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan:
    """`root_kargs` come first on the kernel command line, `cli_kargs` after them."""

    image: ImageFacts
    target_image: ImageReference
    bootloader: Bootloader
    destination: DiskPlan | TargetPlan
    root_kargs: tuple[str, ...]
    cli_kargs: tuple[str, ...]
    karg_deletes: tuple[str, ...]
    allow_missing_verity: bool
    root_ssh_authorized_keys: str | None
    unify: Unify = NOT_UNIFIED
    fetch_from: ImageReference | None = None
    """Where the image is read, if that is not what it is called."""

    def describe(self) -> str:
        """The plan for people, with a newline at its end."""
        size = show_size(self.image.download_size)
        lines = [
            f"image {self.image.reference} ({size} to read)",
            f"  digest {self.image.digest}",
            f"  updates come from {self.target_image}",
            *self.destination.describe(),
            f"boot loader {self.bootloader}",
            f"kernel arguments {' '.join((*self.root_kargs, *self.cli_kargs))} "
            f"composefs={'?' * self.allow_missing_verity}<digest>",
        ]
        if self.unify.wanted:
            copies = " (each file twice)" if self.unify.allow_copy else ""
            lines.insert(3, f"  stored in bootc's container storage, too{copies}")
        return "\n".join(lines) + "\n"


def plan_to_disk(
    options: InstallOptions, disk: DiskOptions, config: InstallConfig, image: ImageFacts
) -> InstallPlan:
    """Plan `install to-disk`."""
    kind = disk.filesystem or config.root_filesystem
    if kind is None:
        raise BootcError(
            "nothing says which root file system to make",
            hint="--filesystem ext4, or root-fs-type in /usr/lib/bootc/install/*.toml",
        )
    _check_block_setup(disk, config)
    bootloader = _check_common(options, config, image)
    filesystems.need_tools(kind)
    allow_missing = options.allow_missing_verity or not kind.has_verity
    destination = plan_disk(disk, kind, image_size=image.disk_size)
    root_kargs: tuple[str, ...] = ("rw",)
    if config.discoverable_partitions is False:
        root_kargs = (f"root=UUID={destination.root_uuid}", "rw")
    return _finish_plan(options, config, image, bootloader, destination, root_kargs, allow_missing)


def plan_to_filesystem(
    options: InstallOptions, target: FilesystemOptions, config: InstallConfig, image: ImageFacts
) -> InstallPlan:
    """Plan `install to-filesystem`."""
    bootloader = _check_common(options, config, image)
    root = os.path.realpath(target.root)
    mount = blockdev.find_mount(root)
    if not os.path.isdir(root) or mount is None:
        raise BootcError(
            f"{target.root} is not the mount point of a file system",
            hint="mount the new root file system there first",
        )
    if target.replace is Replace.ALONGSIDE or os.path.samefile(root, "/"):
        raise BootcError(
            "installing beside a running system cannot be done yet",
            hint="install into an empty file system",
        )
    if target.replace is None:
        _check_empty(root)
    else:
        raise BootcError("--replace=wipe cannot be done yet", hint="make a new file system")
    node, where = _find_target_esp(root, mount)
    spec = target.root_mount_spec
    if spec is None:
        spec = config.root_mount_spec
    if spec is None:
        spec = f"UUID={_filesystem_uuid(mount)}"
    kargs = [f"root={spec}"] if spec else []
    if mount.fstype == "btrfs":
        kargs += [f"rootflags={option}" for option in mount.super_options if "subvol=" in option]
    allow_missing = options.allow_missing_verity or mount.fstype == "xfs"
    if not allow_missing and not filesystems.want_verity(root):
        raise BootcError(
            f"the file system at {target.root} ({mount.fstype}) has no fs-verity",
            hint="make it with `mkfs.ext4 -O verity`, or pass --allow-missing-verity",
        )
    available = os.statvfs(root)
    check_free_space(image, available.f_bavail * available.f_frsize)
    destination = TargetPlan(
        root=root, esp_node=node, esp_mount=where, finalize=not target.skip_finalize
    )
    return _finish_plan(
        options, config, image, bootloader, destination, (*kargs, "rw"), allow_missing
    )


def check_free_space(image: ImageFacts, available: int) -> None:
    """Refuse an image whose layers alone are more than `available` bytes."""
    if image.download_size > available:
        raise BootcError(
            f"Insufficient free space for {image.reference} (available: {show_size(available)} "
            f"required: {show_size(image.download_size)})",
            hint="use a larger file system",
        )


def _finish_plan(
    options: InstallOptions,
    config: InstallConfig,
    image: ImageFacts,
    bootloader: Bootloader,
    destination: DiskPlan | TargetPlan,
    root_kargs: tuple[str, ...],
    allow_missing_verity: bool,
) -> InstallPlan:
    return InstallPlan(
        image=image,
        target_image=_target_image(options, config, image),
        bootloader=bootloader,
        destination=destination,
        root_kargs=(*root_kargs, *config.kargs),
        cli_kargs=options.kargs,
        karg_deletes=(*config.karg_deletes, *options.karg_deletes),
        allow_missing_verity=allow_missing_verity,
        root_ssh_authorized_keys=options.root_ssh_authorized_keys,
        unify=_check_unified(options, destination),
    )


def _check_unified(options: InstallOptions, destination: DiskPlan | TargetPlan) -> Unify:
    """Refuse unified storage where podman is missing or files cannot be shared."""
    if not options.unified_storage:
        return NOT_UNIFIED
    need_podman()
    if not options.allow_copy:
        if isinstance(destination, TargetPlan):
            shares, name = can_share(destination.root), f"the file system at {destination.root}"
        else:
            shares, name = destination.filesystem.has_reflinks, destination.filesystem.value
        if not shares:
            raise BootcError(
                f"{name} has no reflinks, so with unified storage each file would be stored twice",
                hint="--allow-copy does that; btrfs and xfs have reflinks",
            )
    return Unify(wanted=True, allow_copy=options.allow_copy)


def _target_image(
    options: InstallOptions, config: InstallConfig, image: ImageFacts
) -> ImageReference:
    """Where updates come from, the target that the user named, else the source itself; and how
    they are verified."""
    target = image.reference
    if options.target_imgref is not None:
        target = parse_imgref(f"{options.target_transport or 'registry'}:{options.target_imgref}")
    if options.enforce_sigpolicy or config.enforce_container_sigpolicy:
        target = replace(target, signature=CONTAINER_POLICY)
    return target


def _check_common(options: InstallOptions, config: InstallConfig, image: ImageFacts) -> Bootloader:
    bootloader = options.bootloader or config.bootloader or Bootloader.SYSTEMD
    if bootloader is not Bootloader.SYSTEMD:
        raise BootcError(
            f"the boot loader {bootloader} cannot be installed yet", hint="--bootloader systemd"
        )
    _, native = this_platform()
    if image.architecture != native:
        raise BootcError(
            f"the image is for {image.architecture}, this machine is {native}",
            hint=f"use an image for {native}",
        )
    systemd_boot.need_bootctl()
    return bootloader


def _check_block_setup(disk: DiskOptions, config: InstallConfig) -> None:
    allowed = config.block or (BlockSetup.DIRECT,)
    setup = disk.block_setup or allowed[0]
    if setup not in allowed:
        raise BootcError(
            f"the install configuration does not allow --block-setup {setup}",
            hint=f"allowed: {', '.join(allowed)}",
        )
    if setup is not BlockSetup.DIRECT:
        raise BootcError(f"--block-setup {setup} cannot be done yet", hint="--block-setup direct")


def _check_empty(root: str) -> None:
    """Only lost+found and folders that hold nothing but mount points may be there."""
    for entry in os.scandir(root):
        if entry.name == "lost+found":
            continue
        if not (entry.is_dir(follow_symlinks=False) and _holds_only_mounts(entry.path)):
            raise BootcError(
                f"{root} is not empty: {entry.name}", hint="make a new file system there"
            )


def _holds_only_mounts(path: str) -> bool:
    if os.path.ismount(path):
        return True
    return all(
        entry.is_dir(follow_symlinks=False) and _holds_only_mounts(entry.path)
        for entry in os.scandir(path)
    )


def _find_target_esp(root: str, mount: blockdev.Mounted) -> tuple[str | None, str | None]:
    """(node, mount point) of the ESP: one that is mounted below the root, else on its disks."""
    for folder in ("boot", "efi", "boot/efi"):
        path = f"{root}/{folder}"
        found = blockdev.find_mount(path)
        if found is not None and found.fstype == "vfat":
            return None, path
    node = esp.find_esp(blockdev.device_of(mount))
    if node is None:
        raise BootcError(
            f"no EFI system partition was found for {root}",
            hint=f"mount it at {root}/boot, or make one on the same disk",
        )
    return node, None


def _filesystem_uuid(mount: blockdev.Mounted) -> str:
    done = process.run(
        ["blkid", "-p", "-s", "UUID", "-o", "value", mount.source], timeout=60, check=False
    )
    text = done.stdout.strip()
    try:
        return str(UUID(text))
    except ValueError:
        raise BootcError(
            f"the UUID of {mount.source} cannot be found",
            hint="say how to find the root: --root-mount-spec UUID=…",
        ) from None


def need_filesystem(name: str) -> RootFilesystem:
    """The kind that a user named."""
    try:
        return RootFilesystem(name)
    except ValueError:
        known = ", ".join(kind.value for kind in RootFilesystem)
        raise BootcError(f"{name!r} is not a root file system", hint=f"one of {known}") from None
