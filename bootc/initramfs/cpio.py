# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The initramfs archive (cpio "newc"), written so that equal trees give equal bytes.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Each member is a
110-byte header of 8-digit hexadecimal fields (magic 070701, inode, mode, uid, gid, links, mtime,
size, major and minor of the file's device, then of the device node, name size, check 0), the name
with its NUL, padding to 4, the data, padding to 4. `TRAILER!!!` ends it.

Every owner is root, every mtime 0, members are sorted, parents come before their children.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A member: `mode` with its type bits; `data` is the content, or a symlink's target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def file(cls, data: bytes, mode: int = 0o644) -> Node:
        """A regular file."""
        return cls(mode=stat.S_IFREG | mode, data=data)

    @classmethod
    def symlink(cls, target: str) -> Node:
        """A symbolic link."""
        return cls(mode=stat.S_IFLNK | 0o777, data=target.encode())

    @classmethod
    def folder(cls) -> Node:
        """A directory."""
        return cls(mode=stat.S_IFDIR | 0o755)

    @classmethod
    def character_device(cls, major: int, minor: int, mode: int = 0o600) -> Node:
        """A character device."""
        return cls(mode=stat.S_IFCHR | mode, device=(major, minor))


Tree = dict[str, Node]
"""Members by path, without a leading slash; parents may be left out."""


def with_parents(tree: Mapping[str, Node]) -> Tree:
    """`tree` with a directory for every parent that it leaves out."""
    full: Tree = dict(tree)
    for path in tree:
        parts = path.split("/")
        for count in range(1, len(parts)):
            full.setdefault("/".join(parts[:count]), Node.folder())
    return full


def write_archive(tree: Mapping[str, Node]) -> bytes:
    """The archive of `tree`."""
    out = bytearray()
    full = with_parents(tree)
    for inode, path in enumerate(sorted(full, key=lambda path: path.split("/")), start=1):
        _append(out, path, full[path], inode)
    _append(out, "TRAILER!!!", Node(mode=0), 0)
    return bytes(out)


def _append(out: bytearray, path: str, node: Node, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    major, minor = node.device
    fields = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)
