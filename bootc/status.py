# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The truth about an installed system, as a Host document.

What counts, in this order:

1. the mount at `/`: which deployment is booted;
2. the entries of the boot menu on the ESP: which deployments there are, in the menu's order;
3. the origin file of each, and the image in the repository that it names;
4. `/run/composefs/staged-deployment`: which of them waits for the next shutdown.

Of the entries that are neither booted nor staged, the first is the rollback and the rest are
others. A rollback that comes before the booted one in the menu is queued. An entry whose origin is
gone is left out, with a warning in the journal; only the booted deployment is always told. Staged
entries that no staged deployment belongs to are leftovers, and no deployments.

Nothing is written, and no mount is left behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from bootc import paths
from bootc.composefs.repository import Repository
from bootc.composefs.stored import load_image
from bootc.deploy import soft_reboot_check, state
from bootc.deploy.soft_reboot_check import has_same_kernel
from bootc.deploy.state import Origin, Staged
from bootc.deploy.sysroot import (
    Deployment,
    Sysroot,
    find_cmdline,
    is_container,
    open_at,
    open_booted,
    read_deployments,
)
from bootc.errors import BootcError
from bootc.linux import blockdev
from bootc.oci.model import read_config, read_manifest
from bootc.oci.reference import ImageReference
from bootc.spec import (
    BootEntry,
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
_VERSION = "org.opencontainers.image.version"


def read_host(*, booted_only: bool = False) -> Host:
    """The Host document of this machine; the empty one where bootc manages nothing."""
    if is_container() or find_cmdline() is None:
        return Host()
    if os.geteuid() != 0:
        raise BootcError("status of a bootc machine needs root", hint="sudo bootc status")
    with open_booted(writable=False) as sysroot:
        host = describe(sysroot, booted_only=booted_only)
    mounts = blockdev.read_mounts()
    usr = blockdev.find_mount("/usr", mounts)
    physical = blockdev.find_mount(paths.SYSROOT, mounts)
    is_fixed = (
        physical is not None and "ro" in physical.options and blockdev.is_readonly(physical.device)
    )
    status = replace(
        host.status,
        usr_overlay=UsrOverlay(read_only="ro" in usr.options) if usr else None,
        read_only=is_fixed,
    )
    return replace(host, status=status)


def read_host_at(path: str) -> Host:
    """The Host document of the installed system whose root file system is mounted at `path`.

    Nothing of it is running: all deployments are others, in the menu's order.
    """
    with open_at(path) as sysroot:
        return describe(sysroot)


def describe(sysroot: Sysroot, *, booted_only: bool = False, selinux: bool | None = None) -> Host:
    """The document of a sysroot, but for what only the running machine's mounts tell.

    `selinux`: whether a policy is loaded; asked of the kernel if not said.
    """
    with ExitStack() as stack:
        reader = _Reader(sysroot, stack, selinux=selinux)
        if sysroot.booted is None:
            return reader.read_at_rest()
        return reader.read_running(sysroot.booted, booted_only=booted_only)


class _Reader:
    """Makes the records of one system. The repository is opened once, when it is needed."""

    def __init__(self, sysroot: Sysroot, stack: ExitStack, *, selinux: bool | None) -> None:
        self._sysroot = sysroot
        self._stack = stack
        self._repository: Repository | None = None
        self._images: dict[str, _Details | None] = {}
        self._selinux = selinux
        self._policy: tuple[bytes | None] | None = None

    def read_at_rest(self) -> Host:
        found = [
            self._record(item)
            for item in read_deployments(self._sysroot)
            if item.origin is not None and not item.staged
        ]
        return Host(status=HostStatus(others=tuple(found), managed=True))

    def read_running(self, booted_id: str, *, booted_only: bool) -> Host:
        mark = self._staged_mark()
        known = read_deployments(self._sysroot)
        booted = next(item for item in known if item.id == booted_id)
        staged = None
        if mark is not None and mark.deployment != booted_id:
            staged = next((item for item in known if item.id == mark.deployment), None)
        rest = [
            item
            for item in known
            if item is not booted
            and item is not staged
            and not item.staged
            and item.origin is not None
        ]
        if staged is not None and staged.origin is None:
            staged = None
        menu = [item for item in known if item.file is not None and not item.staged]
        queued = bool(rest) and menu[0] is rest[0]
        now = self._record(booted)
        soon = None
        if staged is not None and mark is not None:
            soon = self._record(staged, booted, locked=mark.locked)
        image = (soon or now).image
        hidden = booted_only
        return Host(
            spec=HostSpec(
                image=image.image if image else None,
                boot_order=BootOrder.ROLLBACK if queued else BootOrder.DEFAULT,
            ),
            status=HostStatus(
                staged=None if hidden else soon,
                booted=now,
                rollback=self._record(rest[0], booted) if rest and not hidden else None,
                others=() if hidden else tuple(self._record(item, booted) for item in rest[1:]),
                rollback_queued=queued,
                managed=True,
            ),
        )

    def _staged_mark(self) -> Staged | None:
        try:
            return state.read_staged(self._sysroot.staged_file)
        except BootcError as error:
            _log.warning("what is staged cannot be told: %s", error)
            return None

    def _record(
        self, item: Deployment, booted: Deployment | None = None, *, locked: bool = False
    ) -> BootEntry:
        origin = item.origin
        is_uki = item.entry is not None and (item.entry.efi or item.entry.uki) is not None
        return BootEntry(
            image=self._image(origin) if origin else None,
            soft_reboot_capable=booted is not None and self._can_follow(item, booted),
            download_only=locked,
            composefs=ComposefsEntry(
                verity=item.id,
                boot_type=BootType.UKI if is_uki else BootType.BLS,
                bootloader=self._sysroot.bootloader,
                boot_digest=origin.boot_digest if origin else None,
                missing_verity_allowed=item.insecure,
            ),
        )

    # -- Soft reboots

    def _can_follow(self, item: Deployment, booted: Deployment) -> bool:
        if not has_same_kernel(booted, item):
            return False
        on = soft_reboot_check.is_selinux_on() if self._selinux is None else self._selinux
        if not on:
            return True
        repo = self._open()
        if repo is None:
            return False
        if self._policy is None:
            current = self._sysroot.current
            self._policy = (soft_reboot_check.policy_of_root(current, repo.algorithm),)
        return soft_reboot_check.has_same_policy(repo, self._policy[0], item.id)

    # -- Images

    def _open(self) -> Repository | None:
        if self._repository is None:
            try:
                found = Repository.open(self._sysroot.repository, upgrade=True)
            except (BootcError, OSError) as error:
                _log.warning("the repository cannot be read: %s", error)
                return None
            self._repository = self._stack.enter_context(found)
        return self._repository

    def _image(self, origin: Origin) -> ImageStatus | None:
        """What the repository knows of an image."""
        digest = origin.manifest_digest
        if digest is None:
            _log.warning("the origin of %s names no manifest", origin.image)
            return None
        if digest not in self._images:
            self._images[digest] = self._load(origin.image, digest)
        details = self._images[digest]
        return None if details is None else details(origin.image)

    def _load(self, reference: ImageReference, digest: str) -> _Details | None:
        repo = self._open()
        if repo is None:
            return None
        try:
            image = load_image(repo, f"@{digest}")
            return _read_details(digest, image.manifest, image.config)
        except (BootcError, OSError) as error:
            _log.warning("%s is not in the repository: %s", reference, error)
            return None


_Details = Callable[[ImageReference], ImageStatus]


def image_status(
    reference: ImageReference, digest: str, manifest: bytes, config: bytes
) -> ImageStatus:
    """The record of an image by its manifest and config.

    The version is the manifest's annotation; when that is missing, the config's label.
    """
    return _read_details(digest, manifest, config)(reference)


def _read_details(digest: str, manifest: bytes, config: bytes) -> _Details:
    """What several deployments of the same image have in common: all but the reference."""
    annotations = read_manifest(manifest, digest).annotations
    settings = read_config(config, f"config of {digest}")
    version = annotations.get(_VERSION) or settings.version or settings.labels.get("version")

    def make(reference: ImageReference) -> ImageStatus:
        return ImageStatus(
            image=reference,
            digest=digest,
            architecture=settings.architecture,
            version=version,
            timestamp=settings.created,
        )

    return make
