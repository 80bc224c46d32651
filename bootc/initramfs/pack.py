# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Build the tiny initrd, or put its Python into an initrd that somebody else builds.

    python3 -m bootc.initramfs.pack --output FILE [--root DIR] [--kver VERSION] [--modules A,B,…]
    python3 -m bootc.initramfs.pack --into DIR [--root DIR]

The first writes a whole image whose /init is `tiny_init`. The second is for dracut: it adds to the
tree DIR what /usr/lib/bootc/initrd/{setup-root,find-root} take, and leaves alone what is there.

Both hold what importing these programs takes and no more. Equal inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import zlib
from collections.abc import Mapping
from enum import StrEnum

import zstandard

from bootc import log
from bootc.errors import BootcError, chain_text
from bootc.initramfs import kmods, rootpath, runtime, setup_root
from bootc.initramfs.cpio import Node, Tree, with_parents, write_archive

DEFAULT_MODULES = ("virtio_blk", "erofs", "overlay")
PROGRAMS = "usr/lib/bootc/initrd"

_LAUNCHER = """#!/usr/bin/python3 -IS
import sys

from bootc.initramfs.{module} import main

sys.exit(main())
"""


class Compression(StrEnum):
    """How the image is compressed; the kernel tells by its first bytes."""

    ZSTD = "zstd"
    GZIP = "gzip"
    NONE = "none"

    def apply(self, data: bytes) -> bytes:
        """The compressed archive. zstd's window stays within the 8 MiB that the kernel takes."""
        match self:
            case Compression.ZSTD:
                return zstandard.ZstdCompressor(level=19).compress(data)
            case Compression.GZIP:
                packer = zlib.compressobj(9, zlib.DEFLATED, 31)
                return packer.compress(data) + packer.flush()
            case Compression.NONE:
                return data


def _launcher(module: str) -> Node:
    return Node.file(_LAUNCHER.format(module=module).encode(), 0o755)


def _add_config(root: str, tree: Tree, modules: list[str]) -> None:
    """The configuration, if the image has one, and the parser that only it needs."""
    if rootpath.exists(root, setup_root.CONFIG):
        rootpath.add_file(tree, root, setup_root.CONFIG)
        modules.append("tomllib")


def programs_tree(root: str) -> Tree:
    """What the programs of the dracut module take."""
    tree: Tree = {}
    modules = ["bootc.initramfs.setup_root", "bootc.initramfs.find_root"]
    _add_config(root, tree, modules)
    tree.update(runtime.python_tree(root, modules))
    tree[f"{PROGRAMS}/setup-root"] = _launcher("setup_root")
    tree[f"{PROGRAMS}/find-root"] = _launcher("find_root")
    return tree


def tiny_tree(root: str, kver: str, names: list[str]) -> Tree:
    """The whole content of the tiny initrd."""
    tree: Tree = {
        "init": _launcher("tiny_init"),
        "dev/console": Node.character_device(5, 1),
        "etc/initrd-release": Node.file(b'NAME="bootc tiny initrd"\nID=bootc-initrd\n'),
    }
    for name in ("proc", "sys", "run", "sysroot"):
        tree[name] = Node.folder()
    modules = ["bootc.initramfs.tiny_init"]
    _add_config(root, tree, modules)
    tree.update(runtime.python_tree(root, modules))
    tree.update(kmods.module_tree(root, kver, names))
    return tree


def build_tiny(
    root: str,
    *,
    kver: str | None = None,
    modules: list[str] | None = None,
    compression: Compression = Compression.ZSTD,
) -> bytes:
    """The tiny initrd for the kernel `kver` (the only one by default) of the tree `root`."""
    names = list(DEFAULT_MODULES) if modules is None else modules
    tree = tiny_tree(root, kver or kmods.only_kernel(root), names)
    return compression.apply(write_archive(tree))


def write_into(folder: str, tree: Mapping[str, Node]) -> None:
    """Add `tree` to `folder`; what is there already stays, and its symlinks are followed."""
    full = with_parents(tree)
    for path in sorted(full, key=lambda path: path.split("/")):
        node = full[path]
        real = os.path.join(folder, rootpath.resolve(folder, os.path.dirname(path))[0])
        target = os.path.join(real, os.path.basename(path))
        if os.path.lexists(target):
            continue
        if stat.S_ISDIR(node.mode):
            os.makedirs(target)
        elif stat.S_ISLNK(node.mode):
            os.symlink(node.data.decode(), target)
        else:
            os.makedirs(real, exist_ok=True)
            with open(target, "wb") as file:
                file.write(node.data)
                os.fchmod(file.fileno(), stat.S_IMODE(node.mode))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m bootc.initramfs.pack", description="build the tiny initrd"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", metavar="FILE", help="write the whole image there")
    what.add_argument("--into", metavar="DIR", help="add the programs to this tree instead")
    parser.add_argument("--root", default="/", metavar="DIR", help="the tree to take from")
    parser.add_argument("--kver", metavar="VERSION", help="the kernel (default: the only one)")
    parser.add_argument(
        "--modules",
        default=",".join(DEFAULT_MODULES),
        metavar="A,B",
        help="kernel modules, with what they need (default: %(default)s)",
    )
    parser.add_argument(
        "--compress", default="zstd", choices=[str(one) for one in Compression], help="zstd"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = _parser().parse_args(arguments)
    log.setup()
    try:
        if options.into is not None:
            write_into(options.into, programs_tree(options.root))
            return 0
        with log.step(f"pack {options.output}"):
            names = [name for name in options.modules.split(",") if name]
            image = build_tiny(
                options.root,
                kver=options.kver,
                modules=names,
                compression=Compression(options.compress),
            )
            with open(options.output, "wb") as file:
                file.write(image)
    except (BootcError, OSError) as error:
        sys.stderr.write(f"error: {chain_text(error)}\n")
        if isinstance(error, BootcError) and error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
