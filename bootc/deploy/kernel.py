# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kernel of an image: where it is in the tree, and how it gets onto the ESP.

    EFI/Linux/bootc_composefs-<id>/{vmlinuz,initrd}

`<id>` is the deployment that it was written for first. Deployments with the same kernel and initrd
share that folder, since vfat has no links: their *boot digest*, the SHA-256 of both files one
after the other, is the same. A folder is gone when no entry names it any more. Unified kernel
images are in `uki`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress

from bootc import fs, paths
from bootc.boot import entries
from bootc.composefs.erofs_reader import find_leaf
from bootc.composefs.repository import Repository
from bootc.deploy.image import read_leaf, size_of
from bootc.deploy.uki import Uki, find_uki
from bootc.errors import BootcError
from bootc.log import show_size
from bootc.records import dataclass
from bootc.tree import Directory, Leaf

NO_KERNEL = "the image has no kernel: no usr/lib/modules/*/vmlinuz in it"
NO_KERNEL_HINT = "a bootable image has its kernel in /usr/lib/modules/<version>/vmlinuz"
_FILES = ("vmlinuz", "initrd")
_CHUNK = 1 << 20
_SHORT_NAME = re.compile(r"bootc_~[1-9](\.efi)?", re.IGNORECASE)
"""What vfat calls a folder or file with our prefix of whose long name a power cut left a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernel of an image: its version, and the two files in the image's tree."""

    version: str
    vmlinuz: Leaf
    initrd: Leaf


def find_kernel(root: Directory) -> Kernel | Uki:
    """The one kernel of the image. A unified kernel image counts more than what it was made of.

    Raises `BootcError` without one, with several, and without an initramfs.
    """
    unified = find_uki(root)
    if unified is not None:
        return unified
    modules = root.find_directory(paths.MODULES)
    found = [
        (name, node, node.entries[b"vmlinuz"])
        for name, node in (modules.sorted() if modules else ())
        if isinstance(node, Directory) and b"vmlinuz" in node.entries
    ]
    if not found:
        raise BootcError(NO_KERNEL, hint=NO_KERNEL_HINT)
    if len(found) > 1:
        names = ", ".join(os.fsdecode(name) for name, _, _ in found)
        raise BootcError(f"the image has several kernels: {names}", hint="leave one in it")
    name, folder, vmlinuz = found[0]
    initrd = folder.entries.get(b"initramfs.img")
    version = os.fsdecode(name)
    if not isinstance(vmlinuz, Leaf) or not isinstance(initrd, Leaf):
        raise BootcError(
            f"the image has no initramfs.img beside its kernel in usr/lib/modules/{version}",
            hint="make one with dracut when the image is built",
        )
    return Kernel(version=version, vmlinuz=vmlinuz, initrd=initrd)


def need_separate(kernel: Kernel | Uki) -> Kernel:
    """Kernel and initrd as files. Raises `BootcError` for a unified kernel image."""
    if isinstance(kernel, Uki):
        raise BootcError(
            "the image boots by a unified kernel image, which cannot be installed yet",
            hint="install one with usr/lib/modules/<version>/vmlinuz, then switch to this one",
        )
    return kernel


def kernel_size(kernel: Kernel | Uki) -> int:
    """Bytes of its files."""
    if isinstance(kernel, Uki):
        return size_of(kernel.file)
    return size_of(kernel.vmlinuz) + size_of(kernel.initrd)


def boot_digest(repo: Repository, kernel: Kernel) -> str:
    """The SHA-256, in hexadecimal, of vmlinuz and initrd, one after the other."""
    hasher = hashlib.sha256()
    for leaf in (kernel.vmlinuz, kernel.initrd):
        for piece in read_leaf(repo, leaf):
            hasher.update(piece)
    return hasher.hexdigest()


def known_boot_digest(kernel: Kernel, image: bytes, digest: str | None) -> str | None:
    """`digest`, which is that of the deployment with the EROFS image `image`, if `kernel` is its.

    Equal contents have equal names in the repository, so nothing is read. None if it isn't.
    """
    for name, leaf in (("vmlinuz", kernel.vmlinuz), ("initramfs.img", kernel.initrd)):
        path = f"{paths.MODULES}/{kernel.version}/{name}"
        there = find_leaf(image, os.fsencode(path))
        if there is None or there.content != leaf.content:
            return None
    return digest


def find_shared(esp: str, folders: Iterable[str], digest: str) -> str | None:
    """The first of these folders of `EFI/Linux` whose files have this boot digest; they are read.

    So a damaged file is never shared.
    """
    for name in dict.fromkeys(folders):
        if _digest_of(f"{esp}/{paths.ESP_KERNELS}/{name}") == digest:
            return name
    return None


def _digest_of(folder: str) -> str | None:
    hasher = hashlib.sha256()
    try:
        for name in _FILES:
            with open(f"{folder}/{name}", "rb", buffering=0) as file:
                while piece := file.read(_CHUNK):
                    hasher.update(piece)
    except OSError:
        return None
    return hasher.hexdigest()


def need_room(kernel: Kernel | Uki, esp: str, *, freed: int = 0) -> None:
    """Refuse a kernel that doesn't fit on the ESP, `freed` bytes of which are to be removed."""
    need = kernel_size(kernel)
    room = free_space(esp) + freed
    if need > room:
        raise BootcError(
            f"the kernel and its initramfs ({show_size(need)}) do not fit on the ESP "
            f"({show_size(room)} free)",
            hint="remove what is not bootc's from the ESP; at install, --esp-size with more",
        )


def free_space(esp: str) -> int:
    """Bytes."""
    found = os.statvfs(esp)
    return found.f_bavail * found.f_frsize


def folder_size(esp: str, name: str) -> int:
    """Bytes of the files in a folder of `EFI/Linux`, or of a unified kernel image there."""
    path = f"{esp}/{paths.ESP_KERNELS}/{name}"
    if not os.path.isdir(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    with os.scandir(path) as files:
        return sum(file.stat(follow_symlinks=False).st_size for file in files)


def write_kernel(repo: Repository, kernel: Kernel, esp: str, deployment: str) -> str:
    """Copy kernel and initrd to the deployment's own folder on the ESP; returns the boot digest.

    What is there is replaced. Both files and their folder are on the disk afterwards; a failure
    leaves nothing behind.
    """
    need_room(kernel, esp)
    folder = f"{esp}/{entries.kernel_dir(deployment)}"
    made = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    hasher = hashlib.sha256()
    try:
        for name, leaf in zip(_FILES, (kernel.vmlinuz, kernel.initrd), strict=True):
            _write_file(repo, leaf, f"{folder}/{name}", hasher.update)
        fs.sync_directory(os.path.dirname(folder))
    except BaseException:
        if made:
            with suppress(OSError):
                shutil.rmtree(folder)
        raise
    return hasher.hexdigest()


def _write_file(repo: Repository, leaf: Leaf, path: str, tell: Callable[[bytes], None]) -> None:
    """Another deployment may share the folder, so the old file stays until the new one is whole."""
    with open(f"{path}.new", "wb") as file:
        for piece in read_leaf(repo, leaf):
            tell(piece)
            file.write(piece)
        file.flush()
        fs.put_in_place(file.fileno(), f"{path}.new", path)


def list_kernel_folders(esp: str) -> list[str]:
    """What bootc made below `EFI/Linux`, sorted: folders with kernels, unified kernel images.

    An image is named also if only the folder of its addons is left.
    """
    unified = os.path.basename(paths.UKI_FOLDER)
    found = set(_ours(f"{esp}/{paths.ESP_KERNELS}"))
    for name in _ours(f"{esp}/{paths.UKI_FOLDER}"):
        name = name.removesuffix(".new").removesuffix(paths.UKI_ADDONS)
        if name.endswith(".efi"):
            found.add(f"{unified}/{name}")
    return sorted(found)


def deployment_of_kernel(name: str) -> str:
    """The id of the deployment that what `list_kernel_folders` names was made for."""
    return os.path.basename(name).removeprefix(paths.BOOT_PREFIX).removesuffix(".efi")


def has_short_name(name: str) -> bool:
    """Whether what `list_kernel_folders` names is left of a long name."""
    return _SHORT_NAME.fullmatch(os.path.basename(name)) is not None


def remove_kernel(esp: str, name: str) -> None:
    """Remove what `list_kernel_folders` names."""
    path = f"{esp}/{paths.ESP_KERNELS}/{name}"
    if not name.endswith(".efi"):
        fs.remove_tree(path)
        return
    for part in (path, f"{path}.new"):
        with suppress(FileNotFoundError):
            fs.remove_file(part)
    if os.path.isdir(f"{path}{paths.UKI_ADDONS}"):
        fs.remove_tree(f"{path}{paths.UKI_ADDONS}")


def _ours(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [name for name in names if name.startswith(paths.BOOT_PREFIX) or has_short_name(name)]
