# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Bounds-checked access to the parts of an EROFS image; their layout is in erofs_format.

`ErofsImage` gives superblock, inodes (with attributes), data and directory entries as they lie
there, and attaches no meaning to them: that is erofs_reader's. The image isn't trusted. Everything
wrong is a `FormatError` with the offset in the image: magics, versions and features that composefs
doesn't write, more than 1 GiB, anything outside of the image, names that aren't sorted or that no
file may have.

Parts that overlap would let a small image be read as a huge one. So a caller reads an inode once,
and all the attributes and contents that are read may together not be larger than the image.
"""

from __future__ import annotations

import stat as st
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from bootc.composefs.erofs_format import (
    BLOCK,
    CHUNK_BASED,
    COMPACT,
    COMPOSEFS_MAGIC,
    DIRENT,
    EROFS_MAGIC,
    EXTENDED,
    FLAT_INLINE,
    FLAT_PLAIN,
    HEADER,
    INODES_AT,
    NAME_MAX,
    PREFIXES,
    SLOT,
    SUPERBLOCK,
    SUPERBLOCK_AT,
    XATTR_ENTRY,
    XATTR_HEADER,
    FormatVersion,
)
from bootc.errors import FormatError

SIZE_MAX = 1 << 30
_COMPAT_KNOWN = 1 | 2 | 4
_INCOMPAT_KNOWN = 4
_LAYOUTS = (FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What both headers of an image say; `size` and `attributes_at` in bytes."""

    version: FormatVersion
    root: int
    inodes: int
    mtime: int
    mtime_nsec: int
    size: int
    attributes_at: int


@dataclass(slots=True, kw_only=True)
class Inode:
    """An inode as it lies in the image at `offset`; `extra` is i_u; the tail lies at `tail_at`."""

    offset: int
    layout: int
    mode: int
    links: int
    size: int
    extra: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    xattrs: dict[bytes, bytes]
    tail_at: int

    @property
    def kind(self) -> int:
        return st.S_IFMT(self.mode)


def read_superblock(data: bytes | memoryview, source: str) -> Superblock:
    """Read and check both headers. Raises `FormatError` for what isn't a composefs image."""
    if len(data) < INODES_AT:
        raise FormatError(source, len(data), "the image ends within its headers")
    if len(data) > SIZE_MAX:
        raise FormatError(source, None, f"the image is larger than {SIZE_MAX} bytes")
    magic, header_version, _, version = HEADER.unpack_from(data)
    if magic != COMPOSEFS_MAGIC:
        raise FormatError(source, 0, f"not a composefs image (magic {magic:#x})")
    if header_version != 1 or version not in list(FormatVersion):
        raise FormatError(source, 4, f"unknown version {header_version}, {version}")
    fields = SUPERBLOCK.unpack_from(data, SUPERBLOCK_AT)
    magic, _, compat, block_bits, extra_slots, root, inodes, mtime, nanoseconds = fields[:9]
    blocks, meta, attributes, _, _, incompat, rest = fields[9:]
    if magic != EROFS_MAGIC:
        raise FormatError(source, SUPERBLOCK_AT, f"not an EROFS superblock (magic {magic:#x})")
    if block_bits != 12:
        raise FormatError(source, SUPERBLOCK_AT + 12, f"blocks of 2^{block_bits} bytes")
    if compat & ~_COMPAT_KNOWN or incompat & ~_INCOMPAT_KNOWN:
        raise FormatError(source, SUPERBLOCK_AT, f"unknown features {compat:#x}, {incompat:#x}")
    if extra_slots or meta or any(rest):
        # `rest`: compression, extra devices, packed inodes, custom attribute prefixes.
        raise FormatError(source, SUPERBLOCK_AT, "a feature that composefs doesn't use")
    if blocks * BLOCK > len(data):
        raise FormatError(source, len(data), f"the image ends before its {blocks} blocks do")
    if nanoseconds >= 10**9:
        raise FormatError(source, SUPERBLOCK_AT + 32, f"{nanoseconds} nanoseconds")
    return Superblock(
        version=FormatVersion(version),
        root=root,
        inodes=inodes,
        mtime=_signed(mtime),
        mtime_nsec=nanoseconds,
        size=blocks * BLOCK,
        attributes_at=attributes * BLOCK,
    )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class ErofsImage:
    """An image in memory. Borrows `data`; `source` names it in errors."""

    def __init__(self, data: bytes | memoryview, source: str) -> None:
        self.source = source
        self.super = read_superblock(data, source)
        self._view = memoryview(data)[: self.super.size]
        self._budget = self.super.size
        self._shared: dict[int, tuple[bytes, bytes]] = {}
        self._names: dict[tuple[int, bytes], bytes] = {}

    def fail(self, offset: int, problem: str) -> NoReturn:
        raise FormatError(self.source, offset, problem)

    def _take(self, offset: int, size: int) -> bytes:
        if offset + size > self.super.size:
            self.fail(offset, f"{size} bytes from here would lie outside of the image")
        return bytes(self._view[offset : offset + size])

    def _spend(self, size: int, offset: int) -> None:
        self._budget -= size
        if self._budget < 0:
            self.fail(offset, "the parts of the image overlap")

    def inode(self, nid: int) -> Inode:
        """The inode of this number."""
        offset = nid * SLOT
        head = self._take(offset, COMPACT.size)
        kind, count, mode, links, size, _, extra, _, uid, gid, _ = COMPACT.unpack(head)
        mtime, nanoseconds = self.super.mtime, self.super.mtime_nsec
        length = COMPACT.size
        if kind & 1:
            length = EXTENDED.size
            head = self._take(offset, length)
            _, _, _, _, size, extra, _, uid, gid, mtime, nanoseconds, links = EXTENDED.unpack(head)
            mtime = _signed(mtime)
            if size >> 63 or nanoseconds >= 10**9:
                self.fail(offset, f"an inode of {size} bytes with {nanoseconds} nanoseconds")
        if kind & ~1 not in _LAYOUTS:
            self.fail(offset, f"unknown inode format {kind:#x}")
        tail_at = offset + length
        xattrs: dict[bytes, bytes] = {}
        if count:
            room = 12 + 4 * (count - 1)
            xattrs = self._attributes(tail_at, room)
            tail_at += room
        return Inode(
            offset=offset,
            layout=kind & ~1,
            mode=mode,
            links=links,
            size=size,
            extra=extra,
            uid=uid,
            gid=gid,
            mtime=mtime,
            mtime_nsec=nanoseconds,
            xattrs=xattrs,
            tail_at=tail_at,
        )

    # -- Attributes

    def _attributes(self, offset: int, room: int) -> dict[bytes, bytes]:
        """By full name. Of two with one name: what the kernel finds, first that in the inode."""
        self._spend(room, offset)
        block = self._take(offset, room)
        _, count = XATTR_HEADER.unpack_from(block)
        at = 12 + 4 * count
        if at > room:
            self.fail(offset, f"{count} shared attributes don't fit into {room} bytes")
        xattrs: dict[bytes, bytes] = {}
        while at < room:
            name, value, at = self._entry(block, at, offset)
            xattrs.setdefault(name, value)
        for place in range(count):
            identity = int.from_bytes(block[12 + 4 * place : 16 + 4 * place], "little")
            name, value = self._shared.get(identity) or self._shared_entry(identity)
            xattrs.setdefault(name, value)
        return xattrs

    def _shared_entry(self, identity: int) -> tuple[bytes, bytes]:
        offset = self.super.attributes_at + 4 * identity
        length, _, size = XATTR_ENTRY.unpack(self._take(offset, XATTR_ENTRY.size))
        # Entries that overlap would be counted again and again.
        self._spend(length + size, offset)
        entry = self._take(offset, XATTR_ENTRY.size + length + size)
        name, value, _ = self._entry(entry, 0, offset)
        self._shared[identity] = name, value
        return name, value

    def _entry(self, block: bytes, at: int, offset: int) -> tuple[bytes, bytes, int]:
        """(name, value, place of the next entry) of the entry at `at`; the block is at `offset`."""
        if at + XATTR_ENTRY.size > len(block):
            self.fail(offset + at, "an attribute is cut off")
        length, prefix, size = XATTR_ENTRY.unpack_from(block, at)
        begin = at + XATTR_ENTRY.size
        end = begin + length + size
        if end > len(block):
            self.fail(offset + at, "an attribute is cut off")
        suffix = block[begin : begin + length]
        name = self._names.get((prefix, suffix))
        if name is None:
            if prefix not in PREFIXES or b"\0" in suffix:
                self.fail(offset + at, f"unknown attribute prefix {prefix} or a bad name")
            name = self._names[prefix, suffix] = PREFIXES[prefix] + suffix
        return name, block[begin + length : end], (end + 3) & ~3

    # -- Data

    def data(self, inode: Inode, limit: int) -> bytes:
        """The contents that the image has of an inode. More than `limit` bytes are refused."""
        size = inode.size
        if inode.layout == CHUNK_BASED:
            self.fail(inode.offset, "the contents aren't in the image")
        if size > limit:
            self.fail(inode.offset, f"contents of {size} bytes, more than {limit}")
        self._spend(size, inode.offset)
        if inode.layout == FLAT_PLAIN:
            return self._take(inode.extra * BLOCK, size) if size else b""
        tail = size % BLOCK
        whole = self._take(inode.extra * BLOCK, size - tail) if size > tail else b""
        return whole + self._take(inode.tail_at, tail)

    def entries(self, inode: Inode) -> Iterator[tuple[bytes, int, int]]:
        """(name, inode number, file type) of a directory's entries, in strictly ascending order."""
        data = self.data(inode, self.super.size)
        last = b""
        for begin in range(0, len(data), BLOCK):
            block = data[begin : begin + BLOCK]
            first = int.from_bytes(block[8:10], "little") if len(block) >= DIRENT.size else 0
            if first < DIRENT.size or first % DIRENT.size or first > len(block):
                self.fail(inode.offset, f"bad directory block {begin // BLOCK}")
            heads = list(DIRENT.iter_unpack(block[:first]))
            ends = [offset for _, offset, _ in heads[1:]]
            ends.append(len(block.rstrip(b"\0")))
            for (nid, offset, kind), end in zip(heads, ends, strict=True):
                name = block[offset:end]
                if name <= last or len(name) > NAME_MAX or offset < first or end > len(block):
                    self.fail(inode.offset, f"directory entry {name[:80]!r} is out of order")
                if b"/" in name or b"\0" in name:
                    self.fail(inode.offset, f"directory entry {name[:80]!r} has a bad name")
                last = name
                yield name, nid, kind
