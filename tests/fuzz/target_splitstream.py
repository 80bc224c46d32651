# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Split streams: what the reader accepts is written again and reads as the same stream."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import zstandard

from bootc.composefs.digest import Algorithm
from bootc.composefs.splitstream import (
    OCI_CONFIG,
    OCI_LAYER,
    SplitStream,
    SplitStreamWriter,
    read_splitstream,
)
from bootc.errors import BootcError, FormatError
from tests.fuzz import mutator

SIZE_MAX = 4096
_RANGES_AT = 32
_PACK = zstandard.ZstdCompressor(level=1)


def check(data: bytes) -> BootcError | None:
    """Why the stream was refused, or None. Raises for anything that must not happen."""
    try:
        stream = read_splitstream(data, "stream")
        parts = list(stream.chunks())
    except FormatError as error:
        return error
    if sum(len(part) for part in parts if isinstance(part, bytes)) > 1 << 20:
        return None
    writer = SplitStreamWriter(stream.algorithm, stream.content_type)
    for name, digest in stream.named_refs.items():
        writer.named_ref(name, digest)
    for part in parts:
        if isinstance(part, bytes):
            writer.inline(part)
        else:
            writer.external(stream.object_refs[part], 0)
    back = read_splitstream(writer.finish(), "again")
    assert back.named_refs == stream.named_refs
    assert back.content_type == stream.content_type
    assert _content(back, list(back.chunks())) == _content(stream, parts)
    return None


def _content(stream: SplitStream, parts: Sequence[bytes | int]) -> list[tuple[bool, bytes]]:
    """The pieces with adjacent inline ones joined."""
    found: list[tuple[bool, bytes]] = []
    for part in parts:
        if isinstance(part, int):
            found.append((True, stream.object_refs[part]))
        elif found and not found[-1][0]:
            found[-1] = False, found[-1][1] + part
        else:
            found.append((False, part))
    return found


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Other headers and ranges, other frames around other chunks, and now and then other bytes."""
    how = rng.random()
    if how < 0.3 or len(data) < 112:
        return mutator.mutate(data, rng, others)
    made = bytearray(data)
    if how < 0.5:
        for _ in range(rng.choice((1, 1, 2))):
            mutator.set_number(made, rng.choice((0, 11, 12, 14, 15, *range(16, 112, 8))), rng)
        return bytes(made)
    # The frame of the chunks lies at the end, that of the names before it.
    ranges = struct.unpack_from("<8Q", data, _RANGES_AT)
    start, names, names_end = ranges[4], ranges[6], ranges[7]
    if not 112 <= names <= names_end == start <= len(data):
        return mutator.mutate(data, rng, others)
    if how < 0.85:
        frame = _PACK.compress(_chunks(rng))
        struct.pack_into("<QQ", made, _RANGES_AT + 32, start, start + len(frame))
        return bytes(made[:start]) + frame
    frame = _PACK.compress(_names(rng))
    stream = data[start:]
    struct.pack_into(
        "<2Q", made, _RANGES_AT + 32, names + len(frame), names + len(frame) + len(stream)
    )
    struct.pack_into("<2Q", made, _RANGES_AT + 48, names, names + len(frame))
    return bytes(made[:names]) + frame + stream


def _chunks(rng: random.Random) -> bytes:
    parts: list[bytes] = []
    for _ in range(rng.randrange(5)):
        how = rng.random()
        if how < 0.5:
            size = rng.choice((1, 8, 100, 600))
            parts.append(struct.pack("<q", -size) + bytes(size))
        elif how < 0.8:
            parts.append(struct.pack("<q", rng.choice((0, 0, 1, 2, 3))))
        else:
            number = mutator.interesting(rng, 8)
            parts.append(struct.pack("<Q", number) + bytes(rng.choice((0, 8, 50, 2000))))
    return b"".join(parts)


def _names(rng: random.Random) -> bytes:
    parts: list[bytes] = []
    for _ in range(rng.randrange(4)):
        index = rng.choice((b"0", b"1", b"2", b"00", b"-1", b"", b"+1", b"9" * 30, b"0" * 5000))
        name = rng.choice((b"name", b"b:colon", b"", b"\xff", b"\xc3\xa9", b"x" * 300))
        parts.append(
            index + rng.choice((b":", b":", b":", b"")) + name + rng.choice((b"\0", b"\0", b""))
        )
    return b"".join(parts)


def seeds() -> list[bytes]:
    """A layer and a config of each algorithm, and one with the old header."""
    found: list[bytes] = []
    for algorithm in Algorithm:
        writer = SplitStreamWriter(algorithm, OCI_LAYER)
        writer.inline(b"header" * 20)
        writer.external(b"\1" * algorithm.size, 100)
        writer.inline(b"padding")
        writer.external(b"\2" * algorithm.size, 200)
        writer.external(b"\1" * algorithm.size, 100)
        found.append(writer.finish())
        writer = SplitStreamWriter(algorithm, OCI_CONFIG)
        writer.named_ref("sha256:" + "12" * 32, b"\3" * algorithm.size)
        writer.named_ref("composefs.image.v1", b"\4" * algorithm.size)
        writer.external(b"\5" * algorithm.size, 300)
        found.append(writer.finish())
    magic, version, flags, kernel, block, start, end = struct.unpack_from("<11sBHBBQQ", found[0])
    old = struct.pack("<QQH11sBBB", start, end, flags, magic, version, kernel, block)
    return [*found, old + found[0][32:], SplitStreamWriter(Algorithm.SHA512, OCI_LAYER).finish()]
