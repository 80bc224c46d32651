# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Mounts composefs images: EROFS for the names, an overlay that puts the objects' contents in.

What is mounted, from below:

1. the image as EROFS, of the very descriptor that was verified, by way of /proc/self/fd. The kernel
   reads it as a file (from 6.12 on); where it says ENOTBLK, by a loop device that goes with the
   mount. Its owners may be mapped (idmap);
2. an overlay, source `composefs:NAME`, `metacopy=on`, `redirect_dir=on`, the EROFS as its lower
   layer and the object directories as data-only layers, with `verity=require` when every object
   has to have the digest that the image says, and maybe an upper and a work directory.

The layers are given as descriptors from 6.15 on. Before, an overlay takes only layers that are
attached somewhere: the EROFS is, for that moment, at a temporary folder. Kernels before 6.8 know
neither `lowerdir+` nor `datadir+`: there the layers are one option, `lowerdir=IMAGE::OBJECTS`.

Nothing appears in the tree of mounts before all of it exists. An `ImageMount` is detached until
somebody attaches it; a detached mount goes with its descriptor.

A mount with `verity=require` succeeds where there is no fs-verity, and every read fails. Thus
whether there is fs-verity is asked of the file system by an ioctl (`fsverity`), never by a mount.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from bootc.closing import Closing
from bootc.composefs.repository import Repository
from bootc.errors import BootcError
from bootc.linux import libc, newmount
from bootc.linux.loop import open_loop

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STRING_MAX = 255
"""Bytes of a value that fsconfig(2) takes."""
Above = list[tuple[str, int]]
"""The layers for writing: (option, descriptor)."""
_UNKNOWN_FORM = (errno.EINVAL, errno.EBADF)
"""What a kernel says that does not know this way to name layers (and of much else)."""


class Verity(StrEnum):
    """What the kernel checks before it gives a file's content."""

    OFF = "off"
    ON = "on"
    """Where the image says a digest, the object has it."""
    REQUIRE = "require"
    """And the image says one for each object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How to mount an image.

    `objects`: descriptors of the object directories, searched in this order. `upper` and `work` are
    directories on one file system, both or none; without them nothing can be written, whatever
    `read_write` says. `user_namespace`: a descriptor of the one whose owners the files show.
    """

    objects: tuple[int, ...]
    source: str = "composefs"
    verity: Verity = Verity.OFF
    upper: str | None = None
    work: str | None = None
    read_write: bool = False
    user_namespace: int | None = None


class ImageMount(Closing):
    """A mounted image, a context manager; `fd` is a descriptor of its root directory.

    It is detached: its files are reached by `fd` (`os.open(name, flags, dir_fd=mount.fd)`), and it
    goes when the block ends, unless `attach` put it somewhere.
    """

    def __init__(self, fd: int) -> None:
        """Takes over `fd`, a detached mount."""
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def attach(self, target: str | os.PathLike[str]) -> None:
        """Put the mount at the directory `target`, where it stays until it is unmounted."""
        try:
            newmount.attach(self.fd, os.fspath(target))
        except OSError as error:
            raise BootcError(
                f"cannot mount at {os.fspath(target)}: {error.strerror}",
                hint="name a directory that exists, by a path that /proc/self/mounts can show",
            ) from error

    @contextmanager
    def attached(self, target: str | os.PathLike[str]) -> Iterator[str]:
        """Put the mount at `target` for as long as the block; what is busy then is an error."""
        where = os.fspath(target)
        self.attach(where)
        try:
            yield where
        finally:
            self.close()
            libc.umount2(where)


def mount_image(
    repo: Repository,
    name: str,
    *,
    upper: str | os.PathLike[str] | None = None,
    work: str | os.PathLike[str] | None = None,
    read_write: bool = False,
    user_namespace: int | None = None,
) -> ImageMount:
    """Mount the image `name` (hexadecimal digest or reference) of a repository.

    A secure repository's objects are checked by the kernel, of an insecure one nothing is. Raises
    `NotFoundError`, and `BootcError` for what the kernel refuses. Needs CAP_SYS_ADMIN.
    """
    if (upper is None) != (work is None):
        raise BootcError("an upper directory needs a work directory, and the other way round")
    if read_write and upper is None:
        raise BootcError(
            "without an upper directory there is nothing to write to",
            hint="name an upper and a work directory (--upperdir, --workdir)",
        )
    with ExitStack() as stack:
        image = _keep(stack, repo.open_image(name).fd)
        objects = _keep(stack, os.open("objects", _FOLDER, dir_fd=repo.fd))
        options = MountOptions(
            objects=(objects,),
            source=f"composefs:{name}",
            verity=Verity.REQUIRE if repo.secure else Verity.OFF,
            upper=None if upper is None else os.fspath(upper),
            work=None if work is None else os.fspath(work),
            read_write=read_write,
            user_namespace=user_namespace,
        )
        try:
            return ImageMount(make_mount(image, options))
        except OSError as error:
            raise BootcError(
                f"cannot mount the image {name}: {error.strerror}", hint=_hint(error)
            ) from error


def _hint(error: OSError) -> str | None:
    match error.errno:
        case errno.EPERM:
            return "become root; without CAP_SYS_ADMIN, `cfsctl dump-files` tells what is in it"
        case errno.ENODEV:
            return "load the kernel's modules: `modprobe erofs overlay`"
        case errno.EINVAL:
            return "`dmesg | tail` has the kernel's reason"
        case _:
            return None


class Layers(StrEnum):
    """The ways to tell an overlay its layers, in the order in which they are tried."""

    DESCRIPTORS = "descriptors"
    NAMES = "names"
    ONE_OPTION = "one option"

    def options(self, erofs: int, options: MountOptions, above: Above) -> list[newmount.Option]:
        """The options that name the layers; names are short ones by /proc.

        Because fsconfig(2) takes 255 bytes, and `\\`, `:` and `,` mean something to overlayfs.
        """
        found: list[newmount.Option]
        if self is Layers.DESCRIPTORS:
            found = [("lowerdir+", erofs), *(("datadir+", fd) for fd in options.objects)]
            return [*found, *above]
        named = [f"/proc/self/fd/{fd}" for fd in (erofs, *options.objects)]
        if self is Layers.NAMES:
            found = [("lowerdir+", named[0]), *(("datadir+", path) for path in named[1:])]
        else:
            found = [("lowerdir", "::".join(named))]
        return [*found, *((key, f"/proc/self/fd/{fd}") for key, fd in above)]


def make_mount(
    image: int, options: MountOptions, *, forms: Sequence[Layers] = tuple(Layers)
) -> int:
    """Mount the EROFS image that the descriptor `image` reads; returns the detached mount's own.

    Raises `OSError`, with what the kernel said of the last form that was tried.
    """
    with ExitStack() as stack:
        erofs = _keep(stack, mount_erofs(image))
        if options.user_namespace is not None:
            newmount.set_idmap(erofs, options.user_namespace)
        above = [
            (key, _keep(stack, os.open(path, _FOLDER)))
            for key, path in (("upperdir", options.upper), ("workdir", options.work))
            if path is not None
        ]
        common: list[newmount.Option] = [
            ("source", os.fsdecode(os.fsencode(options.source)[:_STRING_MAX])),
            ("metacopy", "on"),
            ("redirect_dir", "on"),
        ]
        if options.verity is not Verity.OFF:
            common.append(("verity", options.verity.value))
        attributes = 0 if options.read_write else newmount.MOUNT_ATTR_RDONLY
        attached = False
        for form in forms:
            if form is not Layers.DESCRIPTORS and not attached:
                stack.enter_context(_attached_for_a_moment(erofs))
                attached = True
            layers = form.options(erofs, options, above)
            try:
                return newmount.fsmount("overlay", common + layers, attributes=attributes)
            except OSError as error:
                if error.errno not in _UNKNOWN_FORM or form is forms[-1]:
                    raise
        raise AssertionError("no form of layers to try")


def mount_erofs(image: int, *, by_loop: bool = False) -> int:
    """The detached mount of an EROFS image alone; `by_loop` never tries it as a file."""
    if not by_loop:
        try:
            return _fsmount_erofs(f"/proc/self/fd/{image}")
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
    with open_loop(image) as device:
        return _fsmount_erofs(device)


def _fsmount_erofs(source: str) -> int:
    return newmount.fsmount(
        "erofs", [("source", source), ("ro", None)], attributes=newmount.MOUNT_ATTR_RDONLY
    )


def _keep(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


@contextmanager
def _attached_for_a_moment(mount: int) -> Iterator[None]:
    """Put a detached mount somewhere; what is made of it meanwhile outlives that."""
    folder = tempfile.mkdtemp(prefix=".composefs.")
    try:
        newmount.attach(mount, folder)
        try:
            yield
        finally:
            # `mount` itself still holds it, so a plain umount would say EBUSY.
            libc.umount2(folder, libc.MNT_DETACH)
    finally:
        os.rmdir(folder)
