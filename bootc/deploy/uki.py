# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Unified kernel images (UKIs): kernel, initrd and kernel arguments in one file, mostly signed.

An image has one at `boot/EFI/Linux/NAME.efi`; addons (`*.addon.efi`) are none. As /boot is emptied
for booting, the UKI is no part of the deployment's identity, and can name it: `composefs=<id>`, or
`composefs=?<id>` where fs-verity may be missing, is among its arguments. It must be the id of the
image that it came in. On the ESP:

    EFI/Linux/bootc/bootc_composefs-<id>.efi            never shared: it is made for one deployment
    EFI/Linux/bootc/bootc_composefs-<id>.efi.extra.d    its addons, which only installs could bring

The boot digest is the SHA-256 of its sections `.linux` and `.initrd`, one after the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bootc import fs, paths
from bootc.boot import kargs, pe
from bootc.composefs.repository import Repository
from bootc.deploy.image import read_leaf, size_of
from bootc.errors import BootcError, FormatError
from bootc.records import dataclass
from bootc.tree import Directory, External, Leaf

IN_IMAGE = "boot/EFI/Linux"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Uki:
    """The UKI of an image; `name` is its file's."""

    name: str
    file: Leaf

    @property
    def source(self) -> str:
        return f"/{IN_IMAGE}/{self.name}"


def find_uki(root: Directory) -> Uki | None:
    """The one UKI of the image. Raises `BootcError` when there are several."""
    folder = root.find_directory(IN_IMAGE)
    found = [
        Uki(name=os.fsdecode(name), file=node)
        for name, node in (folder.sorted() if folder else ())
        if isinstance(node, Leaf) and name.endswith(b".efi") and not name.endswith(b".addon.efi")
    ]
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise BootcError(
            f"the image has several unified kernel images: {names}", hint="leave one in it"
        )
    return found[0] if found else None


@contextmanager
def _opened(repo: Repository, uki: Uki) -> Iterator[tuple[pe.ReadAt, int]]:
    """How to read it, and its size."""
    size = size_of(uki.file)
    match uki.file.content:
        case External(digest=digest) if digest is not None:
            fd = repo.open_object(digest)
            try:
                yield lambda at, count: os.pread(fd, count, at), size
            finally:
                os.close(fd)
        case _:
            data = b"".join(read_leaf(repo, uki.file))
            yield lambda at, count: data[at : at + count], size


def named_image(repo: Repository, uki: Uki) -> kargs.ComposefsArg:
    """What its kernel arguments name. Raises `BootcError` if that is nothing."""
    with _opened(repo, uki) as (read, size):
        words = kargs.split(pe.read_cmdline(read, size, uki.source))
    found = kargs.find_composefs(words)
    if found is None:
        raise BootcError(
            f"the kernel arguments in {uki.source} name no composefs image",
            hint="build it with the argument that `cfsctl compute-karg` prints",
        )
    return found


def need_right_image(repo: Repository, uki: Uki, deployment: str) -> None:
    """Refuse a UKI that would start another deployment than the one it is to start."""
    found = named_image(repo, uki)
    if found.digest != deployment:
        raise BootcError(
            f"The UKI has the wrong composefs= parameter (is '{found.digest}', should be "
            f"'{deployment}')",
            hint="nothing else in the image may change once its UKI is built: build the UKI last",
        )


def uki_digest(repo: Repository, uki: Uki) -> str:
    """The boot digest. Raises `FormatError` without a kernel in it."""
    hasher = hashlib.sha256()
    with _opened(repo, uki) as (read, size):
        sections = pe.read_sections(read, size, uki.source)
        if ".linux" not in sections:
            raise FormatError(uki.source, None, "has no .linux section, so no kernel in it")
        for name in (".linux", ".initrd"):
            if name in sections:
                section = sections[name]
                for at in range(0, section.size, _PIECE):
                    hasher.update(read(section.offset + at, min(_PIECE, section.size - at)))
    return hasher.hexdigest()


def write_uki(repo: Repository, uki: Uki, esp: str, deployment: str) -> None:
    """Copy it to the ESP. On the disk afterwards; a failure leaves nothing behind."""
    path = f"{esp}/{paths.uki_file(deployment)}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(f"{path}.new", "wb") as file:
            for piece in read_leaf(repo, uki.file):
                file.write(piece)
            file.flush()
            fs.put_in_place(file.fileno(), f"{path}.new", path)
    except BaseException:
        with suppress(OSError):
            os.unlink(f"{path}.new")
        raise
    fs.sync_directory(os.path.dirname(os.path.dirname(path)))
