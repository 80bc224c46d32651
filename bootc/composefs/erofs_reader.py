# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Reads composefs' EROFS images back into trees. The image isn't trusted.

`read_image` undoes what the writer adds: the whiteouts `00` … `ff` of the root, the marks of
whiteouts and of the directories that they lie in, metacopy and redirect, the escaped names of
overlayfs' attributes. So what the writer wrote of a tree reads as an equal tree, but for a user's
own marks on a directory that also contains a whiteout: nothing tells them from the writer's.

Errors are `FormatError`s with the offset in the image. Besides all that erofs_image refuses:
directories with a wrong `.` or `..`, in two places, or 2048 deep; entries of a wrong type; wrong
link counts; whiteouts with several names; overlayfs attributes that make no sense; in V2, inline
files of more than 512 bytes and symbolic links of more than 1024.

`collect_objects` checks, in addition, what keeps the mounted image safe: epoch 1 has all 256 names
in its root, no character device 0 anywhere else, and no symbolic link across a block; epoch 2 has
no escaped whiteout.
"""

from __future__ import annotations

import stat as st

from bootc.composefs.collector import paused_collector
from bootc.composefs.erofs_format import (
    BLOCK,
    CHUNK_BASED,
    ESCAPED,
    FILE_TYPE,
    FLAT_INLINE,
    METACOPY,
    OPAQUE_MARKS,
    OVERLAY,
    REDIRECT,
    STUBS,
    V2_INLINE_MAX,
    V2_SYMLINK_MAX,
    WHITEOUT_MARKS,
    WHITEOUTS_MARKS,
    FormatVersion,
    object_path,
    parse_object_path,
)
from bootc.composefs.erofs_image import SIZE_MAX, ErofsImage, Inode
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Special,
    Stat,
    Symlink,
)

DEPTH_MAX = 2048
SYMLINK_MAX = 4095

_STUBS = frozenset(STUBS)
_DIRECTORY = FILE_TYPE[st.S_IFDIR]


def read_image(
    data: bytes | memoryview, source: str = "image", *, as_is: bool = False
) -> Directory:
    """The tree that an image holds; `source` names it in errors.

    `as_is`: read like the C tools. Link counts of leaves are not checked but kept in `Leaf.nlink`
    (a dump file can say anything there), and so are the opaque marks of directories.
    """
    with paused_collector():
        return _Reader(ErofsImage(data, source), validate=False, as_is=as_is).read()


def read_folder(data: bytes | memoryview, name: bytes, source: str = "image") -> Directory | None:
    """The tree of the directory `name` of an image's root alone; None if there is none.

    Of an image that is trusted: what lies elsewhere isn't looked at, so hard links aren't counted.
    """
    with paused_collector():
        return _Reader(ErofsImage(data, source), validate=False).read_folder(name)


def find_leaf(data: bytes | memoryview, path: bytes, source: str = "image") -> Leaf | None:
    """What lies at `path`, if it is there and no directory; only the folders on its way are read.

    Of an image that is trusted. Symbolic links on the way are not followed.
    """
    return _Reader(ErofsImage(data, source), validate=False).find_leaf(path.split(b"/"))


def collect_objects(data: bytes | memoryview, source: str = "image") -> set[bytes]:
    """The digests of all objects that an image needs, by metacopy or by redirect path."""
    reader = _Reader(ErofsImage(data, source), validate=True)
    with paused_collector():
        reader.read()
    return reader.objects


class _Reader:
    """One image on its way to a tree."""

    def __init__(self, image: ErofsImage, *, validate: bool, as_is: bool = False) -> None:
        self.image = image
        self.fail = image.fail
        self.validate = validate
        self.as_is = as_is
        self.epoch = image.super.version.epoch
        self.objects: set[bytes] = set()
        self.leaves: dict[int, tuple[Inode, Leaf]] = {}
        self.names: dict[int, int] = {}
        self.escaped: set[int] = set()

    def read(self) -> Directory:
        top = self.image.super.root
        inode = self.image.inode(top)
        if inode.kind != st.S_IFDIR:
            self.fail(inode.offset, "the root is not a directory")
        seen = {top}
        root = self.tree(top, top, inode, seen)
        self.check_names(len(seen))
        return root

    def read_folder(self, wanted: bytes) -> Directory | None:
        top = self.image.super.root
        for name, child, kind in self.image.entries(self.image.inode(top)):
            if name == wanted and kind == _DIRECTORY:
                inode = self.image.inode(child)
                if inode.kind != st.S_IFDIR:
                    self.fail(inode.offset, f"{name!r} isn't the directory it is listed as")
                return self.tree(child, top, inode, {top, child})
        return None

    def find_leaf(self, path: list[bytes]) -> Leaf | None:
        inode = self.image.inode(self.image.super.root)
        for place, wanted in enumerate(path, start=1):
            found = (
                (child, kind) for name, child, kind in self.image.entries(inode) if name == wanted
            )
            child, kind = next(found, (0, 0))
            if place == len(path):
                return self.leaf(child, kind) if kind not in (0, _DIRECTORY) else None
            if kind != _DIRECTORY:
                return None
            inode = self.image.inode(child)
        return None

    def tree(self, nid: int, parent: int, inode: Inode, seen: set[int]) -> Directory:
        """A directory and all below it; the inode numbers of directories are added to `seen`."""
        root = Directory(_stat(inode))
        level = [(nid, parent, inode, root)]
        for _ in range(DEPTH_MAX):
            below: list[tuple[int, int, Inode, Directory]] = []
            for nid, parent, inode, directory in level:
                self.fill(nid, parent, inode, directory, below, seen)
            if not below:
                return root
            level = below
        return self.fail(level[0][2].offset, f"directories are {DEPTH_MAX} deep")

    def fill(
        self,
        nid: int,
        parent: int,
        inode: Inode,
        directory: Directory,
        below: list[tuple[int, int, Inode, Directory]],
        seen: set[int],
    ) -> None:
        """Read the entries of a directory; what they contain is added to `below`."""
        is_root = nid == parent
        entries = directory.entries
        subdirectories = len(below)
        marked = False
        stubs = 0
        dots = [b"..", b"."]
        for name, child, kind in self.image.entries(inode):
            if name in dots:
                if child != (nid if name == b"." else parent) or kind != _DIRECTORY:
                    self.fail(inode.offset, f"{name.decode()!r} is inode {child}")
                dots.remove(name)
            elif kind == _DIRECTORY:
                if child in seen:
                    self.fail(inode.offset, f"directory inode {child} is in two places")
                seen.add(child)
                found = self.image.inode(child)
                if found.kind != st.S_IFDIR:
                    self.fail(found.offset, f"{name!r} isn't the directory it is listed as")
                entries[name] = node = Directory(_stat(found))
                below.append((child, nid, found, node))
            else:
                leaf = self.leaf(child, kind)
                if not self.is_stub(leaf, child, name, is_root):
                    entries[name] = leaf
                marked = marked or child in self.escaped
                self.names[child] += 1
            stubs += is_root and name in _STUBS
        if dots:
            self.fail(inode.offset, "a directory without `.` and `..`")
        if is_root and self.validate and self.epoch == 1 and stubs != len(_STUBS):
            self.fail(inode.offset, "the root doesn't hide all object directories")
        subdirectories = len(below) - subdirectories
        if inode.links != 2 + subdirectories:
            self.fail(inode.offset, f"{inode.links} links, but {subdirectories} subdirectories")
        if marked:
            marks = WHITEOUTS_MARKS
            if self.image.super.version >= FormatVersion.V1 and not self.as_is:
                marks = marks | OPAQUE_MARKS
            _strip(directory.stat, marks)

    def is_stub(self, leaf: Leaf, nid: int, name: bytes, is_root: bool) -> bool:
        """Whether it is a whiteout that the writer added. Checks where whiteouts may be."""
        if self.epoch != 1 or nid in self.escaped or leaf.content != _WHITEOUT:
            return False
        if is_root and name.lower() in _STUBS:
            return True
        if self.validate:
            self.fail(self.leaves[nid][0].offset, f"{name!r} is a whiteout outside of the root")
        return False

    def check_names(self, directories: int) -> None:
        """What can be said only when everything was read."""
        for nid, (inode, leaf) in self.leaves.items():
            if self.as_is:
                leaf.nlink = inode.links
                continue
            if inode.links != self.names[nid]:
                self.fail(inode.offset, f"{inode.links} links, but {self.names[nid]} names")
            if inode.links > 1 and leaf.content == _WHITEOUT:
                self.fail(inode.offset, "a whiteout with several names")
        total = directories + len(self.leaves)
        if total > self.image.super.inodes:
            self.fail(0, f"{total} inodes, more than the {self.image.super.inodes} in the headers")

    # -- Leaves

    def leaf(self, nid: int, kind: int) -> Leaf:
        """The leaf of this number, read when it is first met; `kind` is the entry's file type."""
        known = self.leaves.get(nid)
        if known is None:
            inode = self.image.inode(nid)
            stat = _stat(inode)
            known = inode, Leaf(stat, self.content(nid, inode, stat))
            self.leaves[nid] = known
            self.names[nid] = 0
        if FILE_TYPE.get(known[0].kind) != kind:
            self.fail(known[0].offset, f"an inode of another type than its entry ({kind})")
        return known[1]

    def content(self, nid: int, inode: Inode, stat: Stat) -> Content:
        kind = inode.kind
        if kind == st.S_IFREG:
            if not inode.size and WHITEOUT_MARKS.keys() <= inode.xattrs.keys():
                if self.epoch == 1:
                    self.escaped.add(nid)
                    _strip(stat, WHITEOUT_MARKS)
                    return _WHITEOUT
                if self.validate:
                    self.fail(inode.offset, "an escaped whiteout in an image of epoch 2")
            return self.regular(inode)
        if kind == st.S_IFLNK:
            return self.symlink(inode)
        if kind in (st.S_IFCHR, st.S_IFBLK):
            return Device(kind, inode.extra)
        if kind in (st.S_IFIFO, st.S_IFSOCK):
            return Special(kind)
        return self.fail(inode.offset, f"an inode of mode {inode.mode:o}")

    def symlink(self, inode: Inode) -> Symlink:
        target = self.image.data(inode, V2_SYMLINK_MAX if self.epoch == 2 else SYMLINK_MAX)
        if not target or b"\0" in target:
            self.fail(inode.offset, "a symbolic link's target is empty or has a zero byte")
        if self.validate and self.epoch == 1 and inode.layout == FLAT_INLINE:
            begin = inode.offset % BLOCK
            if begin + inode.tail_at - inode.offset + inode.size > BLOCK:
                self.fail(inode.offset, "a symbolic link crosses a block")
        return Symlink(target)

    def regular(self, inode: Inode) -> Content:
        digest = self.metacopy(inode)
        path = inode.xattrs.get(REDIRECT)
        if path is not None:
            if not path.startswith(b"/"):
                self.fail(inode.offset, f"the redirect {path[:80]!r} is not absolute")
            path = path[1:]
            named = parse_object_path(path)
            if named is not None:
                self.objects.add(named)
        if digest is not None:
            self.objects.add(digest)
            # Nearly always the path that follows from the digest; b"" says that there is none.
            payload = None if path == object_path(digest) else path or b""
            return External(inode.size, digest, payload)
        if path is not None:
            return External(inode.size, None, path)
        if inode.layout == CHUNK_BASED:
            return Sparse(inode.size)
        return Inline(self.image.data(inode, V2_INLINE_MAX if self.epoch == 2 else SIZE_MAX))

    def metacopy(self, inode: Inode) -> bytes | None:
        value = inode.xattrs.get(METACOPY)
        if not value:
            return None
        digest = value[4:]
        size = {1: 32, 2: 64}.get(value[3] if len(value) > 3 else 0)
        if len(digest) != size or value[:3] != bytes((0, len(value), 0)):
            self.fail(inode.offset, "the attribute trusted.overlay.metacopy is malformed")
        return digest


_WHITEOUT = Device(st.S_IFCHR, 0)


def _stat(inode: Inode) -> Stat:
    """The metadata of an inode, without the attributes that the writer gave it."""
    xattrs = inode.xattrs
    if xattrs:
        xattrs = {
            (OVERLAY + name[len(ESCAPED) :] if name.startswith(ESCAPED) else name): value
            for name, value in xattrs.items()
            if not name.startswith(OVERLAY) or name.startswith(ESCAPED)
        }
    return Stat(inode.mode & 0o7777, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec, xattrs)


def _strip(stat: Stat, marks: dict[bytes, bytes]) -> None:
    """Remove the marks, given by their names in the image, that have the writer's values."""
    for escaped, value in marks.items():
        name = OVERLAY + escaped[len(ESCAPED) :] if escaped.startswith(ESCAPED) else escaped
        if stat.xattrs.get(name) == value:
            del stat.xattrs[name]
