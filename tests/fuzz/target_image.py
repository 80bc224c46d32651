# SPDX-License-Identifier: Apache-2.0 OR MIT
"""EROFS images: what the reader accepts, the writer writes again, and it reads as the same tree.

Most seeds are images of version 2 with another version in their header: an image of epoch 1 that
the writer makes has 256 whiteouts in its root, and a reader that spends its time on those finds
nothing.
"""

from __future__ import annotations

import random
import stat as st
import struct
import zlib
from collections.abc import Sequence

from bootc.composefs.digest import Algorithm
from bootc.composefs.dumpfile import format_dump
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_image import read_superblock
from bootc.composefs.erofs_reader import collect_objects, read_image
from bootc.composefs.erofs_writer import write_image
from bootc.composefs.gc import find_image_objects
from bootc.errors import BootcError, FormatError
from bootc.tree import (
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Special,
    Stat,
    Symlink,
    walk,
)
from tests.fuzz import mutator

SIZE_MAX = 16384
_INODES = 1152


def check(data: bytes) -> BootcError | None:
    """Why the image was refused, or None. Raises for anything that must not happen."""
    refused = False
    try:
        objects = collect_objects(data)
    except FormatError:
        refused, objects = True, set()
    try:
        root = read_image(data)
    except FormatError as error:
        assert refused, "collect_objects accepted what read_image refuses"
        return error
    if not refused:
        named = {
            node.content.digest
            for _, node in walk(root)
            if isinstance(node, Leaf) and isinstance(node.content, External)
        }
        assert named - {None} <= objects
        live = find_image_objects(data, Algorithm.SHA256, "image")
        assert {digest for digest in objects if len(digest) == 32} <= live, "gc would remove some"
    # To write a tree and read it again takes ten times as long: some of the inputs must do, and
    # fewer of those that get 256 whiteouts.
    pick = zlib.crc32(data)
    if pick % 8 == 0:
        format_dump(read_image(data, as_is=True))
    if pick % 4 == 0:
        version = read_superblock(data, "image").version
        if version is not FormatVersion.V2 and pick % 32 == 0 and not _is_ambiguous(root):
            _rewrite(root, version)
        for _, node in walk(root):
            node.stat.mtime_nsec = 0
        _rewrite(root, FormatVersion.V2)
    return None


def _rewrite(root: Directory, version: FormatVersion) -> None:
    text = format_dump(root)
    assert len(text) < 1 << 20, "a small image became a huge tree"
    try:
        image = write_image(root, version=version, algorithm=Algorithm.SHA256)
    except BootcError:
        # The writer's limits are narrower, for example for all attributes of an inode.
        return
    back = format_dump(read_image(image))
    assert back == text, f"read, written as {version.name} and read again it is another tree"


def _is_ambiguous(root: Directory) -> bool:
    """Whether epoch 1 can't say all of it: a directory with a whiteout and with marks of a user's
    own, which aren't told apart, or an empty file that is backed by an object."""
    whiteout = Device(st.S_IFCHR, 0)
    for _, node in walk(root):
        if isinstance(node, Leaf):
            if isinstance(node.content, External) and not node.content.size:
                return True
            continue
        leaves = [child for child in node.entries.values() if isinstance(child, Leaf)]
        if any(leaf.content == whiteout for leaf in leaves):
            names = {b"overlay.opaque", b"overlay.whiteouts"}
            if any(name.partition(b".")[2] in names for name in node.stat.xattrs):
                return True
    return False


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Changes where the structures are: headers, inodes, directory blocks."""
    used = len(data.rstrip(b"\0"))
    made = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        if len(made) < _INODES + 64:
            break
        how = rng.random()
        if how < 0.08:
            mutator.set_number(made, rng.choice((8, 12, *range(1024, 1152, 2))), rng)
        elif how < 0.75:
            # A field of an inode, or of what follows it (attributes, tail).
            slot = _INODES + 32 * rng.randrange((max(used, _INODES + 32) - _INODES) // 32 + 1)
            mutator.set_number(
                made, slot + rng.choice((0, 2, 4, 6, 8, 16, 20, 24, 32, 36, 44)), rng
            )
        elif how < 0.9:
            # A number that the image has elsewhere: entries of other inodes, shared attributes.
            size = rng.choice((2, 4, 8, 12, 32, 64))
            to, start = (
                rng.randrange(_INODES, max(used, _INODES + 1)) & ~3,
                rng.randrange(_INODES, max(used, _INODES + 1)) & ~3,
            )
            made[to : to + size] = made[start : start + size]
            del made[len(data) :]
        else:
            return mutator.mutate(bytes(made), rng, others, end=used)
    return bytes(made)


def seeds() -> list[bytes]:
    """Images with everything that an image can contain."""
    found: list[bytes] = []
    for root in (_small(), _odd(), _large()):
        image = write_image(root, version=FormatVersion.V2, algorithm=Algorithm.SHA256)
        found.append(image)
        for version in (0, 1):
            found.append(image[:12] + struct.pack("<I", version) + image[16:])
    found.append(write_image(_odd(), version=FormatVersion.V1, algorithm=Algorithm.SHA256))
    return found


def _small() -> Directory:
    root = Directory(Stat(0o755, mtime=3))
    root.entries[b"sub"] = Directory(Stat(0o700), {b"file": Leaf(Stat(0o644), Inline(b"hello"))})
    root.entries[b"link"] = Leaf(Stat(0o777), Symlink(b"sub/file"))
    return root


def _odd() -> Directory:
    root = Directory(Stat(0o755, 1, 2, -5, 0, {b"user.x": b"1", b"security.selinux": b"label"}))
    backed = Leaf(Stat(mtime=5, xattrs={b"user.x": b"1"}), External(5000, b"\x5a" * 32))
    root.entries[b"backed"] = backed
    root.entries[b"again"] = backed
    root.entries[b"named"] = Leaf(Stat(), External(70, None, b"some/path"))
    root.entries[b"sparse"] = Leaf(Stat(), Sparse(1 << 33))
    root.entries[b"inline"] = Leaf(Stat(), Inline(b"x" * 300))
    root.entries[b"char"] = Leaf(Stat(), Device(st.S_IFCHR, 0x105))
    root.entries[b"block"] = Leaf(Stat(), Device(st.S_IFBLK, 7))
    root.entries[b"fifo"] = Leaf(Stat(), Special(st.S_IFIFO))
    root.entries[b"socket"] = Leaf(Stat(), Special(st.S_IFSOCK))
    folder = Directory(Stat(xattrs={b"trusted.overlay.opaque": b"y", b"user.x": b"1"}))
    root.entries[b"folder"] = folder
    folder.entries[b"gone"] = Leaf(
        Stat(xattrs={b"user.overlay.whiteout": b"", b"trusted.overlay.whiteout": b""}), Inline(b"")
    )
    folder.entries[b"deep"] = Directory(Stat(), {b"er": Directory(Stat())})
    return root


def _large() -> Directory:
    root = Directory(Stat(0o755))
    for number in range(20):
        root.entries[b"a-long-name-" * 18 + b"%03d" % number] = Leaf(Stat(), Inline(b""))
    root.entries[b"folder"] = Directory(Stat(xattrs={b"trusted.x": b"y" * 200}))
    return root
