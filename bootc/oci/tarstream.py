# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Tar as image layers have it: a stream of headers and contents becomes nodes of a file tree.

Blocks of 512 bytes: a header, the content, zeros up to a whole block; two zero blocks end the
archive (so does the end of the stream), and whatever follows them belongs to the file, not to the
archive. Header fields (offset, size): name 0 100, mode 100 8, uid 108 8, gid 116 8, size 124 12,
mtime 136 12, checksum 148 8, type 156 1, link name 157 100, magic 257 6, major 329 8, minor 337 8,
prefix 345 155 (only with the magic `ustar\\0`). Numbers are octal text, or binary with the top bit
set; the checksum is the sum of all bytes with its own field as blanks.

* names: PAX `path` over GNU `L` over the header's; the same for link targets (`linkpath`, `K`);
* PAX `size`, `uid`, `gid`, `mtime` (with nanoseconds) and `SCHILY.xattr.<name>` count, global PAX
  headers (`g`) don't;
* a path is taken relative to the root; `.` and empty components vanish, `..` is refused;
* regular contents of more than 64 bytes are external, smaller ones lie in the tree;
* refused: sparse files, unknown types, header-only types with a size, an extension given twice,
  longer than 1 MiB or with no entry after it, a zero block that no other follows, bad checksums.

The input is hostile: every error is a `FormatError` with the offset in the uncompressed tar.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from bootc.errors import FormatError
from bootc.tree import (
    INLINE_MAX,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Special,
    Stat,
    Symlink,
)

BLOCK = 512
EXTENSION_MAX = 1 << 20
PENDING_MAX = 16
_NAME_MAX = 255
_PATH_MAX = 4095
_ZERO = bytes(BLOCK)
# Name, owner (mode, uid and gid), size, mtime, checksum, type, link name, magic.
_HEADER = struct.Struct("100s24s12s12s8sc100s6s")
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_PREFIX = 345


class TarInput(Protocol):
    """Where the parser reads from. All three raise `FormatError` when the stream ends too early."""

    def offset(self) -> int:
        """The offset in the tar of what comes next."""

    def header(self) -> bytes:
        """The next 512 bytes, or nothing at the end of the stream."""

    def inline(self, size: int) -> bytes:
        """The next `size` bytes; the padding to a whole block is consumed too."""

    def external(self, leaf: Leaf, size: int) -> None:
        """Consume a content and its padding and let `leaf.content` become its `External`."""

    def drain(self) -> None:
        """Consume the rest of the stream."""


@dataclass(slots=True)
class Entry:
    """A member: its normal `path` (`usr/bin/ls`, the root is empty), and a node or a hard link.

    Nobody changes one; that it could be changed makes one in half the time.
    """

    path: bytes
    node: Leaf | Directory | None
    link: bytes = b""


class _Bad(Exception):
    """A problem without its place."""


@dataclass(slots=True)
class _Extensions:
    """What the headers before a member say about it."""

    count: int = 0
    name: bytes | None = None
    link: bytes | None = None
    pax: dict[bytes, bytes] | None = None


def read_tar(tar: TarInput, source: str) -> Iterator[Entry]:
    """The members of a tar in their order; `source` names it in errors."""
    extensions = _Extensions()
    while True:
        at = tar.offset()
        try:
            block = tar.header()
            if not block or (block[0] == 0 and block == _ZERO):
                if extensions.count:
                    raise _Bad("an extension header without an entry")
                if block:
                    if tar.header() not in (b"", _ZERO):
                        raise _Bad("a single zero block")
                    tar.drain()
                return
            entry = _read_member(tar, block, extensions)
        except _Bad as problem:
            raise FormatError(source, at, str(problem)) from None
        if entry is not None:
            yield entry
            if extensions.count:
                extensions = _Extensions()


def _read_member(tar: TarInput, block: bytes, extensions: _Extensions) -> Entry | None:
    name, owner, size, mtime, checksum, kind, link, magic = _HEADER.unpack_from(block)
    # The low half of an Adler-32 is 1 plus the sum of all bytes, modulo 65521: no loop in Python.
    total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(checksum) + 8 * 0x20
    if (total - _number(checksum)) % 65521:
        raise _Bad("bad header checksum")
    pax = extensions.pax
    length = _number(size) if pax is None or b"size" not in pax else _decimal(pax, b"size")
    if kind in _EXTENSIONS:
        _read_extension(tar, kind, _number(size), extensions)
        return None
    mode, uid, gid = _owner(owner)
    found = Stat(mode, uid, gid, _number(mtime))
    path = extensions.name
    target = extensions.link
    if path is None:
        path = name.split(b"\0", 1)[0]
        if block[_PREFIX] and magic == b"ustar\0":
            path = block[_PREFIX : _PREFIX + 155].split(b"\0", 1)[0] + b"/" + path
    if pax is not None:
        path = pax.get(b"path") or path
        target = pax.get(b"linkpath") or target
        _apply_pax(found, pax)
    if target is None:
        target = link.split(b"\0", 1)[0]
    return _make_entry(tar, normal_path(path), kind, found, length, target, block)


_EXTENSIONS = (b"x", b"g", b"L", b"K")


def _make_entry(
    tar: TarInput,
    path: bytes,
    kind: bytes,
    found: Stat,
    length: int,
    target: bytes,
    block: bytes,
) -> Entry:
    if kind in (b"0", b"\0", b"7"):
        if not path:
            raise _Bad("the root is a regular file")
        if length > INLINE_MAX:
            leaf = Leaf(found, External(length, None))
            tar.external(leaf, length)
            return Entry(path, leaf)
        return Entry(path, Leaf(found, Inline(tar.inline(length) if length else b"")))
    if length:
        raise _Bad(f"an entry of type {kind!r} with a size of {length}")
    if kind == b"5":
        return Entry(path, Directory(found))
    if not path:
        raise _Bad("the root is no directory")
    match kind:
        case b"1":
            where = normal_path(target)
            if not where:
                raise _Bad("a hard link to nothing or to the root")
            return Entry(path, None, where)
        case b"2":
            if not target or len(target) > _PATH_MAX:
                raise _Bad(f"a symlink with a target of {len(target)} bytes")
            if b"\0" in target:
                raise _Bad(f"the symlink's target {target[:80]!r} has a NUL byte")
            return Entry(path, Leaf(found, Symlink(target)))
        case b"3" | b"4":
            rdev = _device(block[329:337], block[337:345])
            return Entry(
                path, Leaf(found, Device(stat.S_IFCHR if kind == b"3" else stat.S_IFBLK, rdev))
            )
        case b"6":
            return Entry(path, Leaf(found, Special(stat.S_IFIFO)))
        case b"S":
            raise _Bad("sparse files are not supported")
        case _:
            raise _Bad(f"unknown type {kind!r}")


def _device(major: bytes, minor: bytes) -> int:
    high, low = _number(major), _number(minor)
    if high > 0xFFF or low > 0xFFFFF:
        raise _Bad(f"device numbers {high}, {low} are too large")
    return os.makedev(high, low)


def normal_path(path: bytes) -> bytes:
    """`path` relative to the root, without empty and `.` components; empty for the root."""
    stripped = path.strip(b"/")
    if b"/." in stripped or b"//" in stripped or stripped[:1] == b".":
        parts = [part for part in stripped.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise _Bad(f"the path {path[:80]!r} has a `..` component")
        stripped = b"/".join(parts)
    if len(stripped) > _NAME_MAX:
        if len(stripped) > _PATH_MAX:
            raise _Bad(f"a path of {len(stripped)} bytes")
        if max(map(len, stripped.split(b"/"))) > _NAME_MAX:
            raise _Bad(f"a name of more than {_NAME_MAX} bytes in {stripped[:80]!r}…")
    if b"\0" in stripped:
        raise _Bad(f"the path {path[:80]!r} has a NUL byte")
    return stripped


@lru_cache(maxsize=1024)
def _owner(fields: bytes) -> tuple[int, int, int]:
    """Mode, uid and gid, of the three fields that are nearly always those of another member."""
    return (
        _number(fields[:8]) & 0o7777,
        _number(fields[8:16]) & 0xFFFFFFFF,
        _number(fields[16:]) & 0xFFFFFFFF,
    )


@lru_cache(maxsize=8192)
def _number(field: bytes) -> int:
    """A numeric header field: octal text or, with the top bit set, binary."""
    first = field[0]
    if first & 0x80:
        if first & 0x40:
            raise _Bad("a negative number")
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if value >= 1 << 63:
            raise _Bad("a number that is too large")
        return value
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise _Bad(f"a bad number {field!r}")


def _read_extension(tar: TarInput, kind: bytes, size: int, extensions: _Extensions) -> None:
    if size > EXTENSION_MAX:
        raise _Bad(f"an extension header of {size} bytes")
    extensions.count += 1
    if extensions.count > PENDING_MAX:
        raise _Bad(f"more than {PENDING_MAX} extension headers")
    data = tar.inline(size) if size else b""
    match kind:
        case b"L":
            if extensions.name is not None:
                raise _Bad("two long names for one entry")
            extensions.name = data.split(b"\0", 1)[0]
        case b"K":
            if extensions.link is not None:
                raise _Bad("two long link names for one entry")
            extensions.link = data.split(b"\0", 1)[0]
        case b"x":
            if extensions.pax is not None:
                raise _Bad("two PAX headers for one entry")
            extensions.pax = _read_pax(data)
        case _:  # a global header: kept in the stream, without effect
            extensions.count -= 1


def _read_pax(data: bytes) -> dict[bytes, bytes]:
    """PAX records: `LENGTH KEY=VALUE\\n`, LENGTH counting the whole record."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 9)
        digits = data[at:blank] if blank > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if end <= blank + 1 or end > len(data) or data[end - 1] != 0x0A:
            raise _Bad(f"a bad PAX record at byte {at} of the header")
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise _Bad(f"a PAX record without a key at byte {at} of the header")
        if key.startswith(_SPARSE):
            raise _Bad("sparse files are not supported")
        records[key] = value
        at = end
    return records


def _decimal(pax: dict[bytes, bytes], key: bytes) -> int:
    value = pax[key]
    if not value.isdigit() or len(value) > 19 or int(value) >= 1 << 63:
        raise _Bad(f"a bad PAX {key.decode()} {value[:40]!r}")
    return int(value)


def _apply_pax(found: Stat, pax: dict[bytes, bytes]) -> None:
    for key in pax:
        if key == b"uid":
            found.uid = _decimal(pax, key) & 0xFFFFFFFF
        elif key == b"gid":
            found.gid = _decimal(pax, key) & 0xFFFFFFFF
        elif key == b"mtime":
            whole, _, fraction = pax[key].partition(b".")
            found.mtime = _decimal({key: whole}, key)
            if fraction and not fraction.isdigit():
                raise _Bad(f"a bad PAX mtime {pax[key][:40]!r}")
            found.mtime_nsec = int(fraction[:9].ljust(9, b"0"))
        elif key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            if not name or len(name) > _NAME_MAX or b"\0" in name:
                raise _Bad(f"a bad extended attribute name {name[:80]!r}")
            if len(pax[key]) > 0xFFFF:
                raise _Bad(f"the extended attribute {name!r} has {len(pax[key])} bytes")
            found.xattrs[name] = pax[key]
