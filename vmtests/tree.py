# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An image's own tree as a machine's disk, and the image itself as an OCI layout on another disk.

A machine boots the tree directly (kernel and initrd from the image, no boot loader, no install):
that is the ephemeral machine, and the one in which the real installer runs. Nothing is mounted on
the host: `mke2fs -d` fills a file system from a folder.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.log import step
from vmtests import cache, podman
from vmtests.content import Inputs
from vmtests.image import BuiltImage
from vmtests.unshared import call_unshared

_SLACK = 384 << 20
"""Bytes of room in the tree's file system for what a running machine writes."""
OCI_TAG = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTree:
    """The files of one exported image: kernel, initrd, `tree` (ext4) and `layout` (ext4 with an
    OCI layout at its top, tag `image`)."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initramfs.img"

    @property
    def tree(self) -> Path:
        return self.folder / "tree.ext4"

    @property
    def layout(self) -> Path:
        return self.folder / "layout.ext4"


def find_kernel(tree: Path, name: str) -> Path:
    """The one folder below usr/lib/modules of `tree` that holds vmlinuz and initramfs.img."""
    found = sorted(path.parent for path in (tree / "usr/lib/modules").glob("*/vmlinuz"))
    if not found:
        raise BootcError(
            f"image {name} has no kernel: there is nothing at usr/lib/modules/<version>/vmlinuz",
            hint="build it from a bootable base image (BOOTC_base), or unset BOOTC_base",
        )
    if len(found) > 1:
        raise BootcError(f"image {name} has {len(found)} kernels, expected one")
    if not (found[0] / "initramfs.img").exists():
        raise BootcError(f"image {name} has no initrd beside its kernel {found[0].name}")
    return found[0]


def tree_size(tree: Path) -> int:
    """Bytes in whole 4 KiB blocks, and one more block an inode."""
    total = 0
    for folder, folders, names in os.walk(tree):
        for name in [*folders, *names]:
            size = os.lstat(os.path.join(folder, name)).st_size
            total += (size + 4095 & ~4095) + 4096
    return total


def make_ext4(folder: Path, output: Path, size: int, label: str) -> None:
    """A file system image of `size` bytes at `output`, filled from `folder`; nothing is mounted."""
    program = process.need_program("mke2fs", hint="install e2fsprogs")
    with output.open("wb") as file:
        file.truncate(size + (1 << 20) & ~((1 << 20) - 1))
    argv = [program, "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", label]
    argv += ["-E", "lazy_itable_init=1,nodiscard", "-d", str(folder), str(output)]
    process.run(podman.in_namespace(argv), timeout=300)


def write_tree(image: str, name: str, folder: str) -> None:
    """Write the tree of the image with this id, kernel and initrd into `folder`; see `unshared`."""
    made = ImageTree(folder=Path(folder))
    with podman.mounted_image(image) as tree:
        kernel = find_kernel(tree, name)
        shutil.copy(kernel / "vmlinuz", made.kernel)
        shutil.copy(kernel / "initramfs.img", made.initrd)
        make_ext4(tree, made.tree, tree_size(tree) + _SLACK, "tree")


def _export(image: BuiltImage, folder: Path) -> None:
    with step(f"copy the tree of {image.name} onto a disk"):
        call_unshared(write_tree, image.id, image.name, str(folder))
    with (
        step(f"copy {image.name} as an OCI layout onto a disk"),
        tempfile.TemporaryDirectory(prefix="layout-", dir=folder) as scratch,
    ):
        layout = Path(scratch) / "oci"
        save_layout(image, layout)
        make_ext4(Path(scratch), folder / "layout.ext4", tree_size(layout) + (32 << 20), "layout")


def save_layout(image: BuiltImage, folder: Path) -> None:
    """Write `image` to the new folder `folder` as an OCI layout of plain layers, tag `image`."""
    target = ["--format=oci-dir", "--uncompressed", "--quiet", "--output", str(folder)]
    podman.podman("save", *target, image.name, timeout=600)
    _name_layout(folder)


def _name_layout(layout: Path) -> None:
    """podman tags the layout's one manifest with the image's long name; we want a short one."""
    index = layout / "index.json"
    value = json.loads(index.read_text())
    for manifest in value["manifests"]:
        manifest["annotations"] = {"org.opencontainers.image.ref.name": OCI_TAG}
    index.write_text(json.dumps(value))


@contextmanager
def exported(image: BuiltImage) -> Iterator[ImageTree]:
    """The exported files of `image`, from the cache or made now; they stay during the block."""
    inputs = Inputs({"image": image.id})
    with cache.entry("trees", inputs, lambda folder: _export(image, folder)) as folder:
        yield ImageTree(folder=folder)
