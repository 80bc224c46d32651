# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Unified storage: images are pulled once, into bootc's own container storage, and the composefs
repository shares the extents of their files with it.

A system is unified when the image that it follows, or the one that is booted, is in that storage;
then every later update goes that way, too:

    pull (podman) ─▶ composefs/bootc/storage ─reflinks─▶ composefs/objects ─▶ … as every update

So podman can run what the machine boots, without a second download or copy. That needs a file
system with reflinks (btrfs, xfs). On others the files would be stored twice, which is done only
where the user has allowed it: by `--allow-copy`, which is kept as the file
`composefs/bootc/allow-copy`.

The image keeps the digest that it has at its registry, so updates are found as always.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from bootc import fs, paths
from bootc.deploy.progress import Observer
from bootc.deploy.sysroot import Sysroot
from bootc.errors import BootcError, advised, chain_text
from bootc.linux import reflink
from bootc.oci.layout import ImageSource, LocalStorage, open_source
from bootc.oci.reference import ImageReference
from bootc.podman.auth import find_auth_file
from bootc.podman.claims import claim_name, stored_name
from bootc.podman.storage import BootcStorage, StoredImage, find_storage, make_storage
from bootc.records import dataclass

_log = logging.getLogger(__name__)
ALLOW_COPY = "composefs/bootc/allow-copy"
_PROBE = 1 << 16

OpenStored = Callable[[BootcStorage, StoredImage], AbstractContextManager[ImageSource]]
Known = tuple[ImageReference, str | None]
"""An image that a machine knows: its reference, and its manifest's digest where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unify:
    """What the user asked for: to use the storage from now on, and to have files twice for it."""

    wanted: bool = False
    allow_copy: bool = False


NOT_UNIFIED = Unify()


@contextmanager
def open_stored(storage: BootcStorage, image: StoredImage) -> Iterator[ImageSource]:
    """An image of the storage, to be imported: its files can be shared, or copies are allowed."""
    allowed = os.path.exists(f"{os.path.dirname(storage.path)}/{os.path.basename(ALLOW_COPY)}")
    where = f"[overlay@{storage.path}+{storage.runroot}]"
    with ExitStack() as stack:
        with advised(
            "the image cannot be taken over from bootc's container storage",
            "with --allow-copy it is read through skopeo, if need be",
        ):
            source = stack.enter_context(
                open_source(
                    f"containers-storage:{where}{image.id}",
                    local=LocalStorage.AUTO if allowed else LocalStorage.NATIVE,
                )
            )
        yield source


def find_unified_storage(sysroot: Sysroot) -> BootcStorage | None:
    """bootc's container storage of this system, or None. Raises `BootcError` if it is damaged."""
    return find_storage(sysroot.root, run=f"{sysroot.run}/bootc", authfile=find_auth_file())


def make_unified_storage(root: str, run: str = "/run") -> BootcStorage:
    """The storage below a physical root, made if need be."""
    return make_storage(root, run=f"{run}/bootc", authfile=find_auth_file())


def find_stored(
    images: Iterable[StoredImage], reference: ImageReference, digest: str | None
) -> StoredImage | None:
    """The image of a storage that is known by this reference, or by the manifest's digest."""
    name = stored_name(reference)
    for image in images:
        if name is not None and name in image.names:
            return image
        if digest is not None and (image.digest == digest or claim_name(digest) in image.names):
            return image
    return None


def storage_in_use(sysroot: Sysroot, known: Iterable[Known]) -> BootcStorage | None:
    """The storage, if this system is unified: one of these images is in it."""
    try:
        storage = find_unified_storage(sysroot)
        images = storage.images() if storage is not None else ()
    except (BootcError, OSError) as error:
        # An update must not wait until somebody has repaired what it can do without.
        _log.warning("bootc's container storage is not used: %s", chain_text(error))
        return None
    if any(find_stored(images, *one) is not None for one in known):
        return storage
    return None


@contextmanager
def through_storage(
    sysroot: Sysroot,
    target: ImageReference,
    offered: ImageSource,
    observer: Observer,
    *,
    booted: Known | None = None,
    unify: Unify | None = None,
    open_stored: OpenStored = open_stored,
) -> Iterator[tuple[ImageSource, Observer]]:
    """Where the image is to be read from, and who is to be told: as given, if this system isn't
    unified and is not to be; else out of bootc's storage, where it is pulled to first.

    `offered` is the same image at its source. Raises `BootcError`.
    """
    wish = unify or NOT_UNIFIED
    if wish.wanted:
        storage = find_unified_storage(sysroot)
    else:
        storage = storage_in_use(sysroot, [(target, None), *([booted] if booted else [])])
        if storage is None:
            yield offered, observer
            return
    # start-up time: few systems are unified
    from bootc.deploy.unified_pull import Importing, fetch

    permit_copies(sysroot.root, wish.allow_copy)
    need_sharing(sysroot.root, sysroot.repository)
    if storage is None:
        storage = make_unified_storage(sysroot.root, sysroot.run)
    observer.begin(offered)
    fetched = fetch(storage, target, offered, observer)
    with open_stored(storage, fetched.image) as source:
        yield source, Importing(observer)


@contextmanager
def through_new_storage(
    root: str,
    reference: ImageReference,
    offered: ImageSource,
    observer: Observer,
    *,
    repository: str,
    names: Iterable[ImageReference],
    unify: Unify,
    open_stored: OpenStored = open_stored,
) -> Iterator[tuple[ImageSource, Observer]]:
    """The same for an install below the physical root `root`: as given, unless it is `wanted`.

    The image is got as `reference`; in the storage it has those of `names` that are names, too.
    """
    if not unify.wanted:
        yield offered, observer
        return
    # start-up time: few systems are unified
    from bootc.deploy.unified_pull import Importing, fetch

    permit_copies(root, unify.allow_copy)
    need_sharing(root, repository)
    storage = make_unified_storage(root)
    fetched = fetch(storage, reference, offered, observer)
    for name in map(stored_name, names):
        if name is not None and name not in fetched.image.names:
            storage.tag(fetched.image.id, name)
    with open_stored(storage, fetched.image) as source:
        yield source, Importing(observer)


def permit_copies(root: str, allow: bool) -> None:
    """Keep that the user has allowed copies, for the updates to come."""
    if allow and not copies_allowed(root):
        os.makedirs(f"{root}/{os.path.dirname(ALLOW_COPY)}", exist_ok=True)
        fs.write_atomic(f"{root}/{ALLOW_COPY}", b"")


def copies_allowed(root: str) -> bool:
    return os.path.exists(f"{root}/{ALLOW_COPY}")


def need_sharing(root: str, repository: str) -> None:
    """Refuse, before anything is pulled, file systems that cannot share files' extents."""
    storage = f"{root}/{paths.STORAGE}"
    source = storage if os.path.isdir(storage) else repository
    if copies_allowed(root) or can_share(source, repository):
        return
    if os.stat(source).st_dev != os.stat(repository).st_dev:
        why = f"{source} and {repository} are on two file systems"
    else:
        why = f"the file system of {repository} has no reflinks"
    raise BootcError(
        f"{why}, so each file would be stored twice",
        hint="--allow-copy does that, and keeps doing it; btrfs and xfs have reflinks",
    )


def can_share(source: str, target: str | None = None) -> bool:
    """Whether a new file in the folder `target` can share extents with one in `source`."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    try:
        one = os.open(source, flags, 0o600)
    except OSError as error:
        if fs.lacks_tmpfile(error):
            return False
        raise
    try:
        other = os.open(target or source, flags, 0o600)
        try:
            fs.write_all(one, bytes(_PROBE))
            return reflink.clone(other, one)
        finally:
            os.close(other)
    finally:
        os.close(one)
