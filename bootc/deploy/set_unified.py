# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc image set-unified`: bring the booted image into bootc's container storage.

It is copied from the machine's own storage, if podman has the very same image there, and pulled
from where updates come from otherwise: the booted one by its digest; if its registry does not have
that any more, what its tag names now. Then it is imported into the repository, which proves that it
can be, and what the repository had of it before becomes the same extents. From then on all updates
go by the storage (`unified`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from bootc import paths
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledImage
from bootc.deploy import messages
from bootc.deploy.progress import Observer
from bootc.deploy.shared_files import share_files
from bootc.deploy.source import check_signature_policy, open_image
from bootc.deploy.sysroot import Sysroot, read_origin
from bootc.deploy.unified import (
    OpenStored,
    Unify,
    find_stored,
    find_unified_storage,
    make_unified_storage,
    need_sharing,
    open_stored,
    permit_copies,
)
from bootc.deploy.unified_pull import Importing, fetch
from bootc.errors import BootcError, chain_text
from bootc.log import show_size, step
from bootc.oci.layout import FilesSource, ImageSource
from bootc.oci.reference import ImageReference, Transport
from bootc.podman.claims import stored_name
from bootc.podman.command import host_podman, need_podman
from bootc.podman.fetch import Fetched
from bootc.podman.storage import BootcStorage

_log = logging.getLogger(__name__)
_SHORT = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unified:
    """`changed`: it was not so before."""

    image: ImageReference
    digest: str
    changed: bool

    @property
    def text(self) -> str:
        if not self.changed:
            return f"Unified already: {self.image} is in bootc's container storage"
        return f"Unified: {self.image} {self.digest} is in bootc's container storage now"


def set_unified(
    sysroot: Sysroot,
    *,
    allow_copy: bool = False,
    observer: Observer | None = None,
    open_stored: OpenStored = open_stored,
) -> Unified:
    """Make the system a unified one. Raises `BootcError`."""
    booted = read_origin(sysroot, sysroot.need_booted())
    if booted is None:
        raise BootcError(
            "nobody knows which image is booted: its origin file is missing or damaged",
            hint="bootc switch --experimental-unified-storage IMAGE",
        )
    need_podman()
    wish = Unify(wanted=True, allow_copy=allow_copy)
    storage = find_unified_storage(sysroot)
    if storage is not None:
        found = find_stored(storage.images(), booted.image, booted.manifest_digest)
        if found is not None and found.digest is not None:
            permit_copies(sysroot.root, wish.allow_copy)
            return Unified(image=booted.image, digest=found.digest, changed=False)
    check_signature_policy(booted.image)
    permit_copies(sysroot.root, wish.allow_copy)
    need_sharing(sysroot.root, sysroot.repository)
    storage = make_unified_storage(sysroot.root, sysroot.run)
    tell = observer or Observer()
    fetched = _fetch(storage, booted.image, booted.manifest_digest, tell)
    name = stored_name(booted.image)
    if name is not None and name not in fetched.image.names:
        storage.tag(fetched.image.id, name)
    with (
        step("import it into the repository"),
        open_stored(storage, fetched.image) as source,
        Repository.open(sysroot.repository, upgrade=True, insecure=sysroot.insecure) as repo,
    ):
        told = Importing(tell)
        tag = f"{paths.TAG_PREFIX}{source.manifest_digest}"
        pulled = pull(repo, source, reference=booted.image.imgref, tag=tag, on_progress=told.report)
        repo.sync()
        _share(repo, source, pulled)
    tell.end()
    _log.info(
        "the system uses unified storage: %s",
        booted.image,
        extra={"MESSAGE_ID": messages.UNIFIED},
    )
    return Unified(image=booted.image, digest=fetched.digest, changed=True)


def _share(repo: Repository, source: ImageSource, pulled: PulledImage) -> None:
    """Store once what the repository had before; a failure costs room, and is a warning."""
    there = [layer for layer in pulled.layers if layer.entries is None]
    if not there:
        return
    found = None
    if isinstance(source, FilesSource):
        with step("share its files with the repository"):
            try:
                found = share_files(repo, source, there)
            except (BootcError, OSError) as error:
                _log.warning("not all files of the image are shared: %s", chain_text(error))
                return
    if found is None:
        _log.warning(
            "the files of the image are stored twice, until updates have replaced them: the file "
            "system of %s cannot share what exists",
            repo.path,
        )
    else:
        _log.info("  %d files, %s", found.files, show_size(found.size))


def _fetch(
    storage: BootcStorage, image: ImageReference, digest: str | None, tell: Observer
) -> Fetched:
    for one in _candidates(image, digest, storage.authfile):
        try:
            with open_image(one) as offered:
                tell.begin(offered)
                return fetch(storage, one, offered, tell)
        except BootcError as error:
            if one == image:
                raise
            _log.info("%s cannot be had any more (%s)", one, chain_text(error))
    raise AssertionError("the image itself is the last candidate")


def _candidates(
    image: ImageReference, digest: str | None, authfile: str | None
) -> list[ImageReference]:
    """From where it is tried: this machine's storage, the registry by digest, then by tag."""
    found = [image]
    if image.transport is Transport.REGISTRY and digest is not None:
        name = image.image.partition("@")[0]
        folder, slash, last = name.rpartition("/")
        plain = f"{folder}{slash}{last.partition(':')[0]}"
        found.insert(0, replace(image, image=f"{plain}@{digest}"))
        if _host_digest(name, authfile) == digest:
            host = ImageReference(image=name, transport=Transport.CONTAINERS_STORAGE)
            found.insert(0, host)
    return found


def _host_digest(name: str, authfile: str | None) -> str | None:
    """The manifest's digest of the image of this name in the machine's storage, or None."""
    with host_podman(authfile=authfile) as host:
        words = ["image", "inspect", "--format", "{{.Digest}}", name]
        done = host.run(*words, timeout=_SHORT, check=False)
    return done.stdout.strip() if done.status == 0 else None
