# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Tars: what the parser accepts comes back bit for bit from the split stream that is made of it,
with the same members, and merges into a tree or is refused."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from bootc.composefs.assemble import merge_layer
from bootc.composefs.digest import Algorithm
from bootc.composefs.dumpfile import format_dump, parse_dump
from bootc.composefs.splitstream import OCI_LAYER, SplitStreamWriter, read_splitstream
from bootc.composefs.stored_layers import read_stored_layer
from bootc.errors import BootcError, FormatError
from bootc.oci.tarstream import BLOCK, Entry, read_tar
from bootc.tree import Directory, External, Leaf, Stat
from tests import ocibuild
from tests.fuzz import mutator

SIZE_MAX = 8192
_FIELDS = [(0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (148, 8), (156, 1)]
_FIELDS += [(157, 100), (257, 8), (329, 8), (337, 8), (345, 155)]


class _Input:
    """The bytes of a tar; see `tarstream.TarInput`. Contents become objects named by their CRC."""

    def __init__(self, data: bytes, writer: SplitStreamWriter) -> None:
        self._data = data
        self._at = 0
        self._writer = writer
        self.objects: dict[bytes, bytes] = {}

    def offset(self) -> int:
        return self._at

    def _next(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise FormatError("tar", len(self._data), "the tar ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def _inline(self, size: int) -> bytes:
        found = self._next(size)
        self._writer.inline(found)
        return found

    def header(self) -> bytes:
        return b"" if self._at == len(self._data) else self._inline(BLOCK)

    def inline(self, size: int) -> bytes:
        return self._inline(size + -size % BLOCK)[:size]

    def external(self, leaf: Leaf, size: int) -> None:
        content = self._next(size)
        digest = zlib.crc32(content).to_bytes(32, "big")
        self.objects[digest] = content
        self._writer.external(digest, size)
        self._inline(-size % BLOCK)
        leaf.content = External(size, digest)

    def drain(self) -> None:
        self._inline(len(self._data) - self._at)


def check(data: bytes) -> BootcError | None:
    """Why the tar was refused, or None. Raises for anything that must not happen."""
    writer = SplitStreamWriter(Algorithm.SHA256, OCI_LAYER)
    tar = _Input(data, writer)
    try:
        entries = list(read_tar(tar, "tar"))
    except FormatError as error:
        return error
    if len(data) % 4 == 0:
        stream = read_splitstream(writer.finish(), "stream")
        parts = [
            part if isinstance(part, bytes) else tar.objects[stream.object_refs[part]]
            for part in stream.chunks()
        ]
        assert b"".join(parts) == data, "the tar does not come back bit for bit"
        assert stream.total_size == len(data)
        again = list(read_stored_layer(stream))
        assert list(map(_described, again)) == list(map(_described, entries))
    root = Directory(Stat())
    try:
        merge_layer(root, entries, "layer")
    except BootcError as error:
        return error
    text = format_dump(root)
    assert format_dump(parse_dump(text)) == text
    return None


def _described(entry: Entry) -> tuple[object, ...]:
    node = entry.node
    content = node.content if isinstance(node, Leaf) else None
    return entry.path, entry.link, type(node), node.stat if node else None, content


def _repaired(block: bytearray) -> bytearray:
    """A header whose checksum is right again."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Other header fields under a right checksum, other members, and now and then other bytes."""
    how = rng.random()
    if how < 0.15:
        return mutator.mutate(data, rng, others)
    if how < 0.35:
        return b"".join(_member(rng) for _ in range(rng.randrange(1, 5))) + ocibuild.END
    blocks = [bytearray(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    for _ in range(rng.choice((1, 1, 2))):
        if not blocks:
            break
        at = rng.randrange(len(blocks))
        block = blocks[at]
        if len(block) < BLOCK:
            continue
        pick = rng.random()
        if pick < 0.6:
            start, size = rng.choice(_FIELDS)
            block[start : start + size] = _value(rng, size)[:size].ljust(size, b"\0")
            if start != 148:
                _repaired(block)
        elif pick < 0.75:
            blocks.insert(rng.randrange(len(blocks) + 1), bytearray(block))
        elif pick < 0.9:
            del blocks[at]
        else:
            blocks.insert(at, bytearray(_member(rng)))
    return b"".join(blocks)


def _value(rng: random.Random, size: int) -> bytes:
    how = rng.random()
    if how < 0.4:
        return b"%o" % mutator.interesting(rng, rng.choice((1, 2, 4, 8)))
    if how < 0.55:
        return b"\x80" + mutator.interesting(rng, 8).to_bytes(8, "big").rjust(size - 1, b"\0")
    if how < 0.8:
        return rng.choice(_NAMES)
    return rng.choice((b"\xff" * size, b"", b" " * size, b"8", b"-1", b"0x1", b"7" * size, b"\0x"))


_NAMES = (
    *(b"a", b"./", b"/", b"..", b"a/../b", b"/../x", b"a/b", b"a//b/", b"./a/./b", b"x" * 100),
    *(
        b".wh.a",
        b".wh..wh..opq",
        b".wh.",
        b".wh...",
        b"a/.wh..wh..opq",
        b"\xff\xfe",
        b"usr",
        b"..a",
    ),
    *(b"GNU.sparse.major", b"ustar\x0000", b"ustar  \0", b"\xd9\xa3"),
)
_KEYS = (
    *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"SCHILY.xattr.user.x"),
    *(b"SCHILY.xattr.", b"SCHILY.xattr.security.capability", b"GNU.sparse.size", b"comment", b""),
)
_VALUES = (
    *(b"1", b"-1", b"1.5", b"1.", b".5", b"", b"9" * 19, b"9" * 30, b"18446744073709551615", b"0"),
    *(b"0" * 5000, b"a\0b", b"\xff", b"65", b"1.0000000009", b"1.x", b"\xc2\xb2", b"../x", b"/"),
)


def _member(rng: random.Random) -> bytes:
    """A member that is a little wrong, or not at all."""
    how = rng.random()
    name = rng.choice(_NAMES)
    if how < 0.3:
        items = [(rng.choice(_KEYS), rng.choice((*_VALUES, name))) for _ in range(rng.randrange(4))]
        made = ocibuild.pax_items(*items)
        if rng.random() < 0.3:
            made = made.replace(b" ", rng.choice((b"", b"  ", b"9 ")), 1 + (rng.random() < 0.5))
            made += bytes(-len(made) % BLOCK)
        return made
    if how < 0.4:
        return ocibuild.member(
            b"././@LongLink", name + rng.choice((b"", b"\0")), rng.choice((b"L", b"K"))
        )
    if how < 0.6:
        return ocibuild.member(name[:100], bytes(rng.choice((0, 1, 64, 65, 600))))
    kind = bytes([rng.choice(b"0012345567gxLKS\0A")])
    size = rng.choice((0, 0, 0, 1, 512, 1 << 20, 1 << 32))
    link = rng.choice(_NAMES)[:100]
    return ocibuild.header(name[:100], size, kind, link=link, mode=rng.choice((0o644, 0o7777)))


def seeds() -> list[bytes]:
    """Small tars with every kind of member."""
    build = ocibuild
    folders = build.folder(b"./") + build.folder(b"usr") + build.folder(b"usr/lib", 0o700)
    numbers = {"mtime": b"\x80" + (5).to_bytes(11, "big"), "uid": b"0001750\0"}
    return [
        folders + build.member(b"usr/a", b"x" * 64) + build.member(b"usr/b", b"y" * 65) + build.END,
        folders
        + build.header(b"usr/c", 0, b"2", link=b"b")
        + build.header(b"usr/d", 0, b"3", numbers={"major": b"0000001\0", "minor": b"0000005\0"})
        + build.header(b"usr/p", 0, b"6", numbers=numbers)
        + build.member(b"usr/f", b"f")
        + build.header(b"usr/h", 0, b"1", link=b"./usr/f")
        + build.END,
        build.pax_items(
            (b"path", b"long" * 40),
            (b"mtime", b"12.5"),
            (b"SCHILY.xattr.user.x", b"\0\xff"),
            (b"uid", b"70000"),
        )
        + build.member(b"short", b"z" * 700)
        + build.member(b"././@LongLink", b"other" * 30 + b"\0", b"L")
        + build.member(b"././@LongLink", b"target" * 30 + b"\0", b"K")
        + build.header(b"o", 0, b"2", link=b"t"),
        folders
        + build.member(b"usr/.wh.lib", b"")
        + build.member(b"usr/.wh..wh..opq", b"")
        + build.header(b"tail", 3, b"0", prefix=b"usr")
        + build.padded(b"end")
        + build.END
        + bytes(512),
    ]
