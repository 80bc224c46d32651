# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The truth about the running machine, as a Host document.

What counts, in this order:

1. the mount at `/`: its source is `composefs:<id>` or `transient:composefs=<id>`, and that id is
   the booted deployment (the kernel command line only says that this is a composefs machine: after
   a soft reboot its digest is an old one);
2. the entries of the boot menu on the ESP: which deployments there are, in the menu's order;
3. the origin file of each, and the image in the repository that it names;
4. `/run/composefs/staged-deployment`: which of them waits for the next shutdown.

Nothing is written, and no mount is left behind.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from bootc import paths
from bootc.boot import bls, entries, esp, kargs, loader_info
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import state
from bootc.deploy.state import Origin
from bootc.errors import BootcError
from bootc.linux import blockdev
from bootc.oci.model import read_config, read_manifest
from bootc.oci.reference import ImageReference
from bootc.spec import (
    BootEntry,
    Bootloader,
    BootOrder,
    BootType,
    ComposefsEntry,
    Host,
    HostSpec,
    HostStatus,
    ImageStatus,
    UsrOverlay,
)

_log = logging.getLogger(__name__)
_CONTAINER_VARIABLE = "container"
_VERSION = "org.opencontainers.image.version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A deployment with a boot entry; `is_staged` when the entry is one of the staged ones."""

    deployment: str
    entry: bls.Entry | None
    insecure: bool
    is_staged: bool = False


def read_host(*, booted_only: bool = False) -> Host:
    """The Host document of this machine; the empty one where bootc manages nothing."""
    if is_container() or find_cmdline() is None:
        return Host()
    mounts = blockdev.read_mounts()
    root = blockdev.find_mount("/", mounts)
    booted = booted_deployment(root.source if root else "")
    if os.geteuid() != 0:
        raise BootcError("status of a bootc machine needs root", hint="sudo bootc status")
    sysroot = blockdev.find_mount(paths.SYSROOT, mounts)
    if sysroot is None:
        raise BootcError(
            f"nothing is mounted at {paths.SYSROOT}", hint="the initrd should have done that"
        )
    found, menu = _read_boot_entries(sysroot)
    host = _Reader(booted, loader_info.detect()).read(found, menu)
    status = host.status
    usr = blockdev.find_mount("/usr", mounts)
    return Host(
        spec=host.spec,
        status=HostStatus(
            staged=None if booted_only else status.staged,
            booted=status.booted,
            rollback=None if booted_only else status.rollback,
            others=status.others,
            rollback_queued=status.rollback_queued,
            managed=True,
            usr_overlay=UsrOverlay(read_only="ro" in usr.options) if usr else None,
            read_only="ro" in sysroot.options and blockdev.is_readonly(sysroot.device),
        ),
    )


def is_container() -> bool:
    """Whether we run in a container."""
    marks = ("/run/.containerenv", "/.dockerenv")
    told = os.environ.get(_CONTAINER_VARIABLE)
    return bool(told) or any(os.path.exists(mark) for mark in marks)


def find_cmdline(path: str = "/proc/cmdline") -> kargs.ComposefsArg | None:
    """What the kernel was told to boot, or None on a machine without composefs."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return kargs.find_composefs(kargs.split(file.read()))


def booted_deployment(source: str) -> str:
    """The deployment id in the source of the mount at `/`."""
    for prefix in ("composefs:", "transient:composefs="):
        if source.startswith(prefix):
            return source.removeprefix(prefix)
    raise BootcError(
        f"the kernel was told to boot a composefs image, but / is {source!r}",
        hint="look at the initrd's messages: journalctl -b -t bootc-root-setup",
    )


def _read_boot_entries(sysroot: blockdev.Mounted) -> tuple[list[Found], list[str]]:
    """All deployments with an entry, and the menu: the ids of those that aren't staged."""
    device = sysroot.device
    if not os.path.exists(f"/sys/dev/block/{device}"):
        device = blockdev.device_number(os.stat(sysroot.source).st_rdev)
    node = esp.find_esp(device)
    if node is None:
        _log.warning("no EFI system partition was found, so the boot entries are unknown")
        return [], []
    with esp.open_esp(node) as fd:
        menu = entries.read_entries(fd)
        staged = entries.read_entries(fd, paths.ENTRIES_STAGED)
    found = [_found(name, entry, is_staged=False) for name, entry in menu]
    return (
        [*found, *(_found(name, entry, is_staged=True) for name, entry in staged)],
        [item.deployment for item in found],
    )


def _found(name: str, entry: bls.Entry, *, is_staged: bool) -> Found:
    arg = entries.deployment_of(entry, name)
    return Found(deployment=arg.digest, entry=entry, insecure=arg.insecure, is_staged=is_staged)


class _Reader:
    """Makes the records of one machine."""

    def __init__(
        self,
        booted: str,
        bootloader: Bootloader,
        root: str = paths.SYSROOT,
        *,
        staged_file: str = paths.STAGED,
    ) -> None:
        self._staged_file = staged_file
        self._booted = booted
        self._bootloader = bootloader
        self._root = root

    def read(self, found: list[Found], menu: list[str]) -> Host:
        """Sort the deployments into staged, booted, rollback and others."""
        staged_mark = state.read_staged(self._staged_file)
        by_id = {item.deployment: item for item in reversed(found)}
        if self._booted not in by_id:
            cmdline = find_cmdline()
            insecure = cmdline.insecure if cmdline else False
            by_id[self._booted] = Found(deployment=self._booted, entry=None, insecure=insecure)
        booted = self._entry(by_id[self._booted])
        staged_id = staged_mark.deployment if staged_mark else None
        staged = None
        if staged_mark is not None and staged_id in by_id and staged_id != self._booted:
            item = by_id[staged_mark.deployment]
            staged = self._entry(item, by_id[self._booted], locked=staged_mark.locked)
        rest = [
            self._entry(by_id[name], by_id[self._booted])
            for name in dict.fromkeys([*menu, *by_id])
            if name not in (self._booted, staged_id)
        ]
        known = [entry for entry in rest if entry is not None]
        queued = bool(menu) and menu[0] != self._booted and bool(known)
        image = (staged or booted or BootEntry()).image
        return Host(
            spec=HostSpec(
                image=image.image if image else None,
                boot_order=BootOrder.ROLLBACK if queued else BootOrder.DEFAULT,
            ),
            status=HostStatus(
                staged=staged,
                booted=booted,
                rollback=known[0] if known else None,
                others=tuple(known[1:]),
                rollback_queued=queued,
            ),
        )

    def _entry(
        self, item: Found, booted: Found | None = None, *, locked: bool = False
    ) -> BootEntry | None:
        """The record of one deployment; None, and a warning, when its origin is gone."""
        origin = state.read_origin(self._root, item.deployment)
        if origin is None:
            _log.warning(
                "deployment %s has a boot entry, but no origin file; it is left out",
                item.deployment,
                extra={"MESSAGE_ID": "d264f924dadb4c31bff0412107d391fb"},
            )
            if item.deployment != self._booted:
                return None
        capable = booted is not None and self._is_soft_reboot_capable(item, booted, origin)
        is_uki = item.entry is not None and (item.entry.efi or item.entry.uki) is not None
        return BootEntry(
            image=self._image(origin) if origin else None,
            soft_reboot_capable=capable,
            download_only=locked,
            composefs=ComposefsEntry(
                verity=item.deployment,
                boot_type=BootType.UKI if is_uki else BootType.BLS,
                bootloader=self._bootloader,
                boot_digest=origin.boot_digest if origin else None,
                missing_verity_allowed=item.insecure,
            ),
        )

    def _is_soft_reboot_capable(self, item: Found, booted: Found, origin: Origin | None) -> bool:
        """Whether only userspace differs: the same kernel and the same arguments.

        With SELinux on it is false: the policies of the images would have to be compared.
        """
        other = state.read_origin(self._root, booted.deployment)
        if origin is None or other is None or os.path.isdir("/sys/fs/selinux"):
            return False
        if origin.boot_digest is None or origin.boot_digest != other.boot_digest:
            return False
        if item.entry is None or booted.entry is None:
            return False
        mine, theirs = item.entry.arguments, booted.entry.arguments
        composefs = ["composefs"]
        return len(mine) == len(theirs) and set(kargs.without(mine, composefs)) == set(
            kargs.without(theirs, composefs)
        )

    def _image(self, origin: Origin) -> ImageStatus | None:
        """What the repository knows of the deployment's image."""
        if origin.manifest_digest is None:
            _log.warning("the origin of %s names no manifest", origin.image)
            return None
        try:
            with Repository.open(f"{self._root}/{paths.REPOSITORY}") as repo:
                image = load_image(repo, f"@{origin.manifest_digest}")
        except BootcError as error:
            _log.warning("%s is not in the repository: %s", origin.image, error)
            return None
        return image_status(origin.image, image.manifest_digest, image.manifest, image.config)


def image_status(
    reference: ImageReference, digest: str, manifest: bytes, config: bytes
) -> ImageStatus:
    """The record of an image by its manifest and config.

    The version is the manifest's annotation; when that is missing, the config's label.
    """
    annotations = read_manifest(manifest, digest).annotations
    settings = read_config(config, f"config of {reference}")
    return ImageStatus(
        image=reference,
        digest=digest,
        architecture=settings.architecture,
        version=annotations.get(_VERSION) or settings.version or settings.labels.get("version"),
        timestamp=settings.created,
    )
