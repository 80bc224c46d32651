# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A file system tree in memory: what layers are merged into and EROFS images are written from.

Names, link targets and extended attributes are bytes. A hard link is one `Leaf` object under
several names. Mutable on purpose: merging layers edits it in place, tens of thousands of times.
"""

from __future__ import annotations

import stat as st
from collections.abc import Iterator
from dataclasses import dataclass, field

INLINE_MAX = 64
"""Bytes: a regular file up to this size is stored in the image, a larger one as an object."""


@dataclass(slots=True)
class Stat:
    """Metadata of a node: `mode` holds the permission bits only (07777); times are signed."""

    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def copy(self) -> Stat:
        return Stat(self.mode, self.uid, self.gid, self.mtime, self.mtime_nsec, dict(self.xattrs))


@dataclass(frozen=True, slots=True)
class Inline:
    """A regular file whose bytes lie in the image."""

    data: bytes


@dataclass(frozen=True, slots=True)
class External:
    """A regular file of `size` bytes whose content is the object `digest` (raw fs-verity bytes).

    `payload` is the redirect path when it isn't the one that follows from the digest (dump files
    can say so; empty: there is none); `digest` is None when the content is only named and not
    verified.
    """

    size: int
    digest: bytes | None
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Sparse:
    """A regular file of `size` zero bytes without any content."""

    size: int


@dataclass(frozen=True, slots=True)
class Symlink:
    target: bytes


@dataclass(frozen=True, slots=True)
class Device:
    """A block (`S_IFBLK`) or character (`S_IFCHR`) device; `rdev` as in `st_rdev`."""

    kind: int
    rdev: int


@dataclass(frozen=True, slots=True)
class Special:
    """A fifo (`S_IFIFO`) or a socket (`S_IFSOCK`)."""

    kind: int


Content = Inline | External | Sparse | Symlink | Device | Special


@dataclass(slots=True, eq=False)
class Leaf:
    """Anything but a directory.

    Two things that dump files say: `nlink` overrides the count of references; `home` is, of the
    names of a leaf that has several, the one under which images of epoch 1 number its inode.
    """

    stat: Stat
    content: Content
    nlink: int | None = None
    home: tuple[Directory, bytes] | None = None

    @property
    def kind(self) -> int:
        """The type bits (`S_IFMT`)."""
        match self.content:
            case Inline() | External() | Sparse():
                return st.S_IFREG
            case Symlink():
                return st.S_IFLNK
            case Device(kind=kind) | Special(kind=kind):
                return kind


@dataclass(slots=True, eq=False)
class Directory:
    stat: Stat
    entries: dict[bytes, Directory | Leaf] = field(default_factory=dict)

    def sorted(self) -> list[tuple[bytes, Directory | Leaf]]:
        """The entries by bytewise name, the order of every format here."""
        return sorted(self.entries.items(), key=lambda item: item[0])

    def find(self, path: bytes | str) -> Directory | Leaf | None:
        """The node at `path` (components by `/`, no symlink is followed), or None."""
        name = path.encode() if isinstance(path, str) else path
        node: Directory | Leaf = self
        for part in name.split(b"/"):
            if part in (b"", b"."):
                continue
            if not isinstance(node, Directory):
                return None
            child = node.entries.get(part)
            if child is None:
                return None
            node = child
        return node

    def find_directory(self, path: bytes | str) -> Directory | None:
        node = self.find(path)
        return node if isinstance(node, Directory) else None


Node = Directory | Leaf


def walk(root: Directory) -> Iterator[tuple[bytes, Node]]:
    """(path, node) depth first, names sorted, the root as `/`."""
    yield b"/", root
    stack: list[tuple[bytes, Iterator[tuple[bytes, Node]]]] = [(b"/", iter(root.sorted()))]
    while stack:
        base, entries = stack[-1]
        following = next(entries, None)
        if following is None:
            stack.pop()
            continue
        name, node = following
        path = base + name
        yield path, node
        if isinstance(node, Directory):
            stack.append((path + b"/", iter(node.sorted())))
