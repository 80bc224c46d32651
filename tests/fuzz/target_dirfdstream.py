# SPDX-License-Identifier: Apache-2.0 OR MIT
"""splitdirfdstreams: what the reader accepts is written again, byte for byte, and reads the same,
however few bytes come at a time.
"""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Sequence

from bootc.composefs.dirfdstream import Data, StreamWriter, read_chunks
from bootc.errors import BootcError, FormatError
from tests.fuzz import mutator

SIZE_MAX = 4096
_NAMES = (b"a", b"ab/cd", b"x" * 300, b"\xff", b"./.")
_NO_NAMES = (b"", b"..", b"/", b"a/../b", b"a\0", b"x" * 4097)


class _Trickle(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(7)


def check(data: bytes) -> BootcError | None:
    """Why the stream was refused, or None. Raises for anything that must not happen."""
    try:
        found = list(read_chunks(io.BytesIO(data)))
    except FormatError as error:
        try:
            list(read_chunks(_Trickle(data)))
        except FormatError:
            return error
        raise AssertionError("it was refused as a whole, and not in pieces") from error
    assert list(read_chunks(_Trickle(data))) == found
    fd = os.memfd_create("stream")
    try:
        writer = StreamWriter(fd)
        empty = 0
        for chunk, content in found:
            if not isinstance(chunk, Data):
                writer.file(chunk.size, chunk.index, chunk.name)
            elif chunk.content:
                writer.inline(content)
            else:
                writer.metadata(content)
                empty += not content
        writer.flush()
        again = os.pread(fd, len(data) + 1, 0)
    finally:
        os.close(fd)
    assert len(again) == len(data) - 5 * empty, "only empty Metadata chunks are left out"
    assert empty or again == data
    return None


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another stream, now and then with names that are none; or other bytes, lengths above all."""
    how = rng.random()
    if how < 0.4:
        return _make(rng, (*_NAMES, *_NO_NAMES))
    if how < 0.6 and len(data) > 8:
        made = bytearray(data)
        mutator.set_number(made, rng.randrange(len(made)), rng)
        return bytes(made)
    return mutator.mutate(data, rng, others)


def seeds() -> list[bytes]:
    rng = random.Random(1)
    return [_make(rng, _NAMES) for _ in range(20)]


def _make(rng: random.Random, names: Sequence[bytes]) -> bytes:
    parts: list[bytes] = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.randrange(3)
        if kind == 2:
            name = rng.choice(names)
            parts.append(struct.pack("<BQII", 2, rng.getrandbits(20), rng.randrange(4), len(name)))
            parts.append(name)
        else:
            content = rng.randbytes(rng.choice((0, 1, 100)))
            parts.append(struct.pack("<BI", kind, len(content)) + content)
    return b"".join(parts)
