# SPDX-License-Identifier: Apache-2.0 OR MIT
"""EROFS as composefs uses it: constants and records that the writer and the reader share.

Sources: Linux fs/erofs/erofs_fs.h; composefs. Little-endian, blocks of 4096 bytes.

    0      composefs header, 32 bytes, then zeros
    1024   superblock, 128 bytes
    1152   inodes, each at a multiple of 32 (its number, nid, is offset / 32): header of 32 bytes
           (compact) or 64 (extended), attributes, the tail of the data; padded with zeros
    …      shared attributes, then zeros up to a block
    …      data blocks in inode order; the file ends with a whole block

Header: u32 magic, u32 1, u32 flags (1: some inode has a POSIX ACL), u32 version, 16 zeros.
Superblock: see `SUPERBLOCK`; compat features are always 6 (MTIME, XATTR_FILTER), incompat 0.

Inode, compact:  u16 format, u16 attribute count, u16 mode, u16 links, u32 size, u32 0, u32 i_u,
                 u32 number, u16 uid, u16 gid, u32 0
Inode, extended: u16 format, u16 attribute count, u16 mode, u16 0, u64 size, u32 i_u, u32 number,
                 u32 uid, u32 gid, u64 seconds, u32 nanoseconds, u32 links, 16 zeros
`format`: bit 0 = extended, above it the layout. i_u: block address, device, or chunk format.

Directory: blocks of n x {u64 nid, u16 offset of the name, u8 type, u8 0}, then the names; a block
ends where the block, or the inode's tail, ends. Sorted by bytes, `.` and `..` among the names.

Attributes: u32 filter, u8 n of shared ones, 7 zeros, n x u32 ids, then entries: u8 length of the
suffix, u8 prefix, u16 length of the value, suffix, value, padded to 4. `filter` has a bit cleared
for every attribute: xxh32(suffix, seed + prefix) & 31. The count in the inode is
1 + (size - 12) / 4, or 0 when there are none. A shared id counts words from the block that the
superblock names as `attribute block`.
"""

from __future__ import annotations

import functools
import stat as st
from enum import IntEnum
from struct import Struct

COMPOSEFS_MAGIC = 0xD078629A
EROFS_MAGIC = 0xE0F5E1E2
BLOCK = 4096
SUPERBLOCK_AT = 1024
INODES_AT = 1152
SLOT = 32
FLAG_ACL = 1
COMPAT = 6

HEADER = Struct("<IIII16x")
# magic, checksum, compat, log2 block, extra slots, root nid, inodes, time, nanoseconds, blocks,
# meta block, attribute block, uuid, volume name, incompat, rest
SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sI44s")
COMPACT = Struct("<HHHHIIIIHHI")
EXTENDED = Struct("<HHHHQIIIIQII16x")
DIRENT = Struct("<QHBx")
XATTR_HEADER = Struct("<IB7x")
XATTR_ENTRY = Struct("<BBH")

FLAT_PLAIN = 0
FLAT_INLINE = 4
CHUNK_BASED = 8

CHUNK_BITS_MAX = 43
CHUNKS_MAX = 1024
NAME_MAX = 255
# Longer ones can't be placed in a V2 image so that the kernel reads them.
V2_INLINE_MAX = 512
V2_SYMLINK_MAX = 1024
SHARED_MAX = 128
XATTR_ROOM = 12 + 4 * (0xFFFF - 1)

FILE_TYPE = {
    st.S_IFREG: 1,
    st.S_IFDIR: 2,
    st.S_IFCHR: 3,
    st.S_IFBLK: 4,
    st.S_IFIFO: 5,
    st.S_IFSOCK: 6,
    st.S_IFLNK: 7,
}

OVERLAY = b"trusted.overlay."
ESCAPED = b"trusted.overlay.overlay."
METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"
OPAQUE = b"trusted.overlay.opaque"
WHITEOUT_MARKS = {b"trusted.overlay.overlay.whiteout": b"", b"user.overlay.whiteout": b""}
WHITEOUTS_MARKS = {b"trusted.overlay.overlay.whiteouts": b"", b"user.overlay.whiteouts": b""}
OPAQUE_MARKS = {b"trusted.overlay.overlay.opaque": b"x", b"user.overlay.opaque": b"x"}
SELINUX = b"security.selinux"

STUBS = tuple(b"%02x" % number for number in range(256))
"""The names that the root of epoch 1 must have, so that overlayfs hides the object directories."""


class FormatVersion(IntEnum):
    """The composefs version in the header. V0 and V1 are epoch 1, as C composefs writes them."""

    V0 = 0
    V1 = 1
    V2 = 2

    @property
    def epoch(self) -> int:
        return 2 if self is FormatVersion.V2 else 1


PREFIXES = {
    0: b"",
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    5: b"lustre.",
    6: b"security.",
}


def split_name(name: bytes, epoch: int) -> tuple[int, bytes]:
    """(prefix, suffix) of an attribute's name; epoch 1 doesn't know the prefix `lustre.`."""
    for index in (6, 4, 1, 2, 3, 5):
        prefix = PREFIXES[index]
        if name.startswith(prefix) and not (index == 5 and epoch == 1):
            return index, name[len(prefix) :]
    return 0, name


@functools.lru_cache(maxsize=4096)
def filter_bit(prefix: int, suffix: bytes) -> int:
    """The bit of the name filter that stands for this attribute."""
    return 1 << (xxh32(suffix, 0x25BBE08F + prefix) & 31)


_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
_M = 0xFFFFFFFF


def _rotate(value: int, count: int) -> int:
    return ((value << count) | (value >> (32 - count))) & _M


def xxh32(data: bytes, seed: int) -> int:
    """xxHash, 32 bits (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md)."""
    at, size = 0, len(data)
    if size >= 16:
        lanes = [seed + _P1 + _P2, seed + _P2, seed, seed - _P1]
        while at + 16 <= size:
            for lane in range(4):
                word = int.from_bytes(data[at : at + 4], "little")
                lanes[lane] = _rotate((lanes[lane] + word * _P2) & _M, 13) * _P1 & _M
                at += 4
        rotated = zip(lanes, (1, 7, 12, 18), strict=True)
        value = sum(_rotate(lane & _M, count) for lane, count in rotated)
    else:
        value = seed + _P5
    value = (value + size) & _M
    while at + 4 <= size:
        word = int.from_bytes(data[at : at + 4], "little")
        value = _rotate((value + word * _P3) & _M, 17) * _P4 & _M
        at += 4
    for byte in data[at:]:
        value = _rotate((value + byte * _P5) & _M, 11) * _P1 & _M
    value = (value ^ (value >> 15)) * _P2 & _M
    value = (value ^ (value >> 13)) * _P3 & _M
    return value ^ (value >> 16)


def object_path(digest: bytes) -> bytes:
    """`xx/yyyy…`, where the object of this digest lies in a repository's `objects`."""
    text = digest.hex().encode()
    return text[:2] + b"/" + text[2:]


def parse_object_path(path: bytes) -> bytes | None:
    """The digest that a path ending in `xx/yyyy…` names, or None."""
    for size in (128, 64):
        text = path[-size - 1 :]
        whole = len(text) == size + 1 and text[2:3] == b"/"
        if whole and (len(path) == size + 1 or path[-size - 2 : -size - 1] == b"/"):
            try:
                digest = bytes.fromhex((text[:2] + text[3:]).decode("ascii"))
            except ValueError:
                continue
            return digest if len(digest) * 2 == size else None
    return None
