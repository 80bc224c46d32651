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
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from bootc import jsonutil, paths
from bootc.composefs.documents import Documents, find_documents
from bootc.deploy import state
from bootc.deploy.soft_reboot_check import has_same_kernel, is_selinux_on
from bootc.deploy.state import Origin, Staged
from bootc.deploy.sysroot import (
    Deployment,
    Sysroot,
    find_cmdline,
    is_container,
    open_at,
    open_booted,
    read_deployments,
    read_origin,
)
from bootc.errors import BootcError
from bootc.linux import blockdev
from bootc.oci.reference import ImageReference
from bootc.records import replace
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.composefs.repository import Repository

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
        known = read_deployments(self._sysroot)
        if self._sysroot.esp is None:
            known = tuple(self._without_menu())
        found = [
            self._record(item) for item in known if item.origin is not None and not item.staged
        ]
        return Host(status=HostStatus(others=tuple(found), managed=True))

    def _without_menu(self) -> Iterator[Deployment]:
        """The deployments by their state folders, the newest first; what enforces verity is not
        known then."""
        root = self._sysroot.root
        times = {
            name: os.stat(f"{root}/{paths.state_dir(name)}").st_mtime_ns
            for name in state.list_deployments(root)
            if os.path.exists(f"{root}/{paths.origin_file(name)}")
        }
        for name in sorted(times, key=lambda name: -times[name]):
            yield Deployment(
                id=name,
                entry=None,
                file=None,
                staged=False,
                insecure=True,
                origin=read_origin(self._sysroot, name),
            )

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
        except (BootcError, OSError) as error:
            _log.warning("what is staged cannot be told: %s", error)
            return None

    def _record(
        self, item: Deployment, booted: Deployment | None = None, *, locked: bool = False
    ) -> BootEntry:
        origin = item.origin
        is_uki = item.entry is not None and (item.entry.efi or item.entry.uki) is not None
        return BootEntry(
            image=self._image(item, origin) if origin else None,
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
        if not (is_selinux_on() if self._selinux is None else self._selinux):
            return True
        repo = self._open()
        if repo is None:
            return False
        from bootc.deploy import selinux_policy  # start-up time, as below

        if self._policy is None:
            current = self._sysroot.current
            self._policy = (selinux_policy.policy_of_root(current, repo.algorithm),)
        return selinux_policy.has_same_policy(repo, self._policy[0], item.id)

    # -- Images

    def _open(self) -> Repository | None:
        """The repository; most questions are answered without it."""
        from bootc.composefs.repository import Repository  # half of the start-up time

        if self._repository is None:
            try:
                found = Repository.open(self._sysroot.repository, upgrade=True)
            except (BootcError, OSError) as error:
                _log.warning("the repository cannot be read: %s", error)
                return None
            self._repository = self._stack.enter_context(found)
        return self._repository

    def _image(self, item: Deployment, origin: Origin) -> ImageStatus | None:
        """What the repository knows of an image."""
        digest = origin.manifest_digest or self._old_digest(item)
        if digest is None:
            _log.warning("nobody knows which image of %s it was", origin.image)
            return None
        if digest not in self._images:
            self._images[digest] = self._load(origin.image, digest)
        details = self._images[digest]
        return None if details is None else details(origin.image)

    def _old_digest(self, item: Deployment) -> str | None:
        from bootc.deploy import legacy  # start-up time; origins have named it for long

        repo = self._open()
        return legacy.find_manifest_digest(repo, self._sysroot.root, item) if repo else None

    def _load(self, reference: ImageReference, digest: str) -> _Details | None:
        try:
            documents = find_documents(self._sysroot.repository, digest)
            if documents is None:
                documents = self._load_slowly(digest)
            return None if documents is None else _read_details(digest, documents)
        except (BootcError, OSError) as error:
            _log.warning("%s is not in the repository: %s", reference, error)
            return None

    def _load_slowly(self, digest: str) -> Documents | None:
        """By the repository: it knows older formats, and why something cannot be read."""
        from bootc.composefs.stored import load_image  # start-up time

        repo = self._open()
        if repo is None:
            return None
        image = load_image(repo, f"@{digest}")
        return Documents(
            manifest=jsonutil.read_object(image.manifest, f"manifest {digest}"),
            config=jsonutil.read_object(image.config, f"config of {digest}"),
        )


_Details = Callable[[ImageReference], ImageStatus]


def _read_details(digest: str, documents: Documents) -> _Details:
    """What several deployments of the same image have in common: all but the reference.

    The version is the manifest's annotation; when that is missing, the config's label.
    """
    annotations = documents.manifest.optional_table("annotations")
    inner = documents.config.optional_table("config")
    labels = inner.optional_table("Labels") if inner else None
    found = [
        table.optional_text(key)
        for table, key in ((annotations, _VERSION), (labels, _VERSION), (labels, "version"))
        if table is not None
    ]
    version = next((text for text in found if text), None)
    architecture = documents.config.text("architecture")
    created = documents.config.optional_text("created")

    def make(reference: ImageReference) -> ImageStatus:
        return ImageStatus(
            image=reference,
            digest=digest,
            architecture=architecture,
            version=version,
            timestamp=created,
        )

    return make
