# SPDX-License-Identifier: Apache-2.0 OR MIT
"""bootc's own container storage: where it is, how it comes to be, and which images it holds.

It is a containers-storage (driver overlay) at `composefs/bootc/storage` below the physical root;
`ostree/bootc` leads to its parent. The image may name it, by `/usr/lib/bootc/storage`, as an
additional image store, so that podman runs what is in it without a copy.

    absent or empty      not there yet: installs leave an empty folder
    storage.tmp          podman was making it and did not end; removed by the next attempt
    overlay-images/ …    made: podman has created it under the other name, and it was renamed
    anything else        half-made or something else: refused, nothing there is touched

Where SELinux is on, its files get the labels that the policy has for podman's own storage, once:
the stamp `.bootc_labeled` says that they have. What comes later inherits them.

podman alone writes into it. Which images it holds is read from `overlay-images/images.json`, an
array of objects with `id`, `names`, `digest` and `big-data-digests`. There `manifest` is the digest
of the image's own manifest; `digest` may be that of an index by which it was pulled. That file is
replaced in one step, so no lock is needed to read it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bootc import fs, paths, process
from bootc.errors import BootcError, ProcessError
from bootc.jsonutil import Reader, read_object
from bootc.linux import libc
from bootc.log import step
from bootc.podman.command import ALIAS, Podman, confined, storage_podman
from bootc.records import dataclass

_IMAGES = "overlay-images"
_LAYERS = "overlay-layers/layers.json"
_TEMPORARY = f"{paths.STORAGE}.tmp"
_LIST_MAX = 64 << 20
_SHORT = 120.0
_SELINUX = "/sys/fs/selinux/enforce"
_LABELED_AS = "/var/lib/containers/storage"
_STAMP = ".bootc_labeled"
LOCK_HINT = "another podman may hold the storage: `fuser -v {}/storage.lock` tells"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image in the storage. `id` is its config's digest (hexadecimal), `digest` its manifest's
    (`sha256:…`); `names` are references with a tag or digest."""

    id: str
    digest: str | None
    names: tuple[str, ...]

    def has_name(self, reference: str) -> bool:
        """Whether podman would find it by this name of a registry's image."""
        return normalized(reference) in self.names


@dataclass(frozen=True, slots=True, kw_only=True)
class BootcStorage:
    """`path` is the storage's folder. `run` is a folder in /run, for what podman keeps until the
    next boot; `alias` where podman finds the storage."""

    path: str
    run: str = "/run/bootc"
    alias: str = ALIAS
    authfile: str | None = None

    @property
    def runroot(self) -> str:
        return f"{self.run}/storage-run"

    @contextmanager
    def podman(self) -> Iterator[Podman]:
        """podman with this storage, as long as the block."""
        with storage_podman(
            self.path, self.runroot, alias=self.alias, authfile=self.authfile
        ) as made:
            yield made

    def run_podman(self, *words: str, timeout: float = _SHORT) -> str:
        """Run podman to its end; what it printed. Raises `ProcessError`."""
        with self.podman() as podman, self.explained():
            return podman.run(*words, timeout=timeout).stdout

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Give advice to who waited in vain for a lock."""
        try:
            yield
        except ProcessError as error:
            if error.status is not None or error.hint is not None:
                raise
            hint = LOCK_HINT.format(self.path)
            raise BootcError("podman did not finish", hint=hint) from error

    def images(self) -> tuple[StoredImage, ...]:
        """All images. Raises `FormatError` when the list is damaged."""
        return tuple(_read_image(item) for item in self._records(f"{_IMAGES}/images.json"))

    def _records(self, name: str) -> Iterator[Reader]:
        path = f"{self.path}/{name}"
        try:
            with open(path, "rb") as file:
                data = file.read(_LIST_MAX)
        except FileNotFoundError:
            return iter(())
        return read_object(b'{"list":%s}' % (data or b"[]"), path).tables("list")

    def layers(self) -> frozenset[str]:
        """The diff ids of all layers. Raises `FormatError`."""
        found = (item.optional_text("diff-digest") for item in self._records(_LAYERS))
        return frozenset(digest for digest in found if digest)

    def find_image(self, reference: str) -> StoredImage | None:
        """The image with this name, digest or id."""
        for image in self.images():
            if reference in (image.id, image.digest) or image.has_name(reference):
                return image
        return None

    def tag(self, image: str, name: str) -> None:
        """Give an image one more name."""
        self.run_podman("tag", image, name)

    def remove_names(self, names: Sequence[str]) -> None:
        """Take these names away, in this order; what loses its last one is removed."""
        for name in names:
            self.run_podman("image", "rm", name, timeout=10 * _SHORT)


def _read_image(item: Reader) -> StoredImage:
    names = item.texts("names") if item.has("names") else []
    data = item.optional_table("big-data-digests")
    digest = data.optional_text("manifest") if data is not None else None
    return StoredImage(
        id=item.text("id"), digest=digest or item.optional_text("digest"), names=tuple(names)
    )


def normalized(reference: str) -> str:
    """The name that podman gives what was pulled as `reference`: with registry, and with a tag
    unless there is a digest (then a tag is dropped)."""
    name, at, digest = reference.partition("@")
    folder, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    host = folder.partition("/")[0]
    if not slash:
        folder = "docker.io/library"
    elif "." not in host and ":" not in host and host != "localhost":
        folder = f"docker.io/{folder}"
    if at:
        return f"{folder}/{last}@{digest}"
    return f"{folder}/{last}:{tag if colon else 'latest'}"


def find_storage(
    root: str, *, run: str = "/run/bootc", authfile: str | None = None
) -> BootcStorage | None:
    """The storage below the physical root `root`, or None when it was not made yet.

    Raises `BootcError` when what is there is no storage.
    """
    path = f"{root}/{paths.STORAGE}"
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise BootcError(
            f"{path} is no folder, so it cannot be bootc's container storage",
            hint=f"look at it, and move it away: mv {path} {path}.old",
        ) from None
    if not names:
        return None
    if _IMAGES not in names:
        raise BootcError(
            f"{path} is not empty, and no container storage: it has no {_IMAGES}",
            hint=f"look at it, and move it away: mv {path} {path}.old",
        )
    return BootcStorage(path=path, run=run, authfile=authfile)


def make_storage(
    root: str,
    *,
    run: str = "/run/bootc",
    alias: str = ALIAS,
    authfile: str | None = None,
    selinux: bool | None = None,
) -> BootcStorage:
    """The storage below `root`; if there is none, an empty one is made, in one step.

    `selinux` is whether to label it (default: if SELinux is on here). Nobody else may do that at
    the same time. Raises `BootcError`; then there is none.
    """
    found = find_storage(root, run=run, authfile=authfile)
    if found is not None:
        return BootcStorage(path=found.path, run=run, alias=alias, authfile=authfile)
    temporary = f"{root}/{_TEMPORARY}"
    parent = os.path.dirname(temporary)
    os.makedirs(parent, exist_ok=True)
    _remove_temporary(temporary)
    os.mkdir(temporary, 0o700)
    made = BootcStorage(path=temporary, run=run, alias=alias, authfile=authfile)
    try:
        with step("make bootc's container storage"):
            made.run_podman("images", "--quiet")
            _need_made(temporary)
            if os.path.exists(_SELINUX) if selinux is None else selinux:
                _label(made)
            with fs.open_directory(temporary) as fd:
                libc.syncfs(fd)
            _rename(temporary, f"{root}/{paths.STORAGE}")
    except BaseException:
        _remove_temporary(temporary)
        raise
    fs.sync_directory(parent)
    _link(root)
    return BootcStorage(path=f"{root}/{paths.STORAGE}", run=run, alias=alias, authfile=authfile)


def _remove_temporary(path: str) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.exists(path):
        shutil.rmtree(path)


def _need_made(path: str) -> None:
    if not os.path.isdir(f"{path}/{_IMAGES}"):
        raise BootcError(
            f"podman made no {_IMAGES} in the new container storage {path}",
            hint="`podman --storage-driver overlay info` tells whether it can use overlayfs",
        )


def _label(storage: BootcStorage) -> None:
    """Label a storage as if it were podman's own: at that path, in a namespace of its own."""
    program = process.need_program("restorecon", hint="install policycoreutils")
    with confined(storage.path, storage.runroot, alias=_LABELED_AS) as made:
        argv = [*made.argv, program, "-R", _LABELED_AS]
        process.run(argv, env=made.env, pass_fds=made.fds, timeout=10 * _SHORT)
    fs.write_atomic(f"{storage.path}/{_STAMP}", b"")


def _rename(temporary: str, path: str) -> None:
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise BootcError(
            f"{path} came to be while it was made", hint="does another bootc run? try again"
        ) from error


def _link(root: str) -> None:
    """`ostree/bootc`, where it is not: the path that other programs know."""
    link, target = paths.OSTREE_LINK
    where = f"{root}/{link}"
    if os.path.lexists(where):
        return
    os.makedirs(os.path.dirname(where), exist_ok=True)
    os.symlink(target, where)
    fs.sync_directory(os.path.dirname(where))
