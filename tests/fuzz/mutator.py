# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Changes to bytes that parsers stumble over: flips, integers, truncations, splices, repeats."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

_WIDTHS = (struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q"))
_EDGES = [0, 1, 2, 3, 7, 8, 12, 31, 32, 63, 64, 65, 127, 128, 255, 256, 511, 512, 2047, 2048, 4095]
_EDGES += [4096, 4097, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
_EDGES += [1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def interesting(rng: random.Random, width: int) -> int:
    """A number of `width` bytes: an edge, near an edge, or anything."""
    how = rng.random()
    limit = (1 << 8 * width) - 1
    if how < 0.5:
        return rng.choice(_EDGES) & limit
    if how < 0.7:
        return (rng.choice(_EDGES) + rng.randint(-3, 3)) & limit
    return rng.getrandbits(8 * width) >> rng.randrange(8 * width)


def set_number(data: bytearray, at: int, rng: random.Random) -> None:
    """Overwrite an integer of 1, 2, 4 or 8 bytes, or move it a little."""
    form = rng.choice(_WIDTHS)
    if at + form.size > len(data):
        return
    if rng.random() < 0.3:
        (value,) = form.unpack_from(data, at)
        value = (value + rng.choice((-32, -8, -2, -1, 1, 2, 8, 32))) & ((1 << 8 * form.size) - 1)
    else:
        value = interesting(rng, form.size)
    form.pack_into(data, at, value)


def mutate(
    data: bytes, rng: random.Random, others: Sequence[bytes], *, end: int | None = None
) -> bytes:
    """One to four changes, of those parts of `data` that lie before `end`."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        limit = min(len(made), end or len(made))
        if not limit:
            return bytes(made) + rng.randbytes(rng.randrange(8))
        at = rng.randrange(limit)
        how = rng.random()
        if how < 0.25:
            made[at] ^= 1 << rng.randrange(8)
        elif how < 0.55:
            set_number(made, at & ~3 if how < 0.45 else at, rng)
        elif how < 0.62:
            del made[at:]
        elif how < 0.72:
            size = rng.randrange(1, 65)
            made[at : at + size] = made[(start := rng.randrange(limit)) : start + size]
        elif how < 0.8:
            del made[at : at + rng.randrange(1, 33)]
        elif how < 0.9:
            made[at:at] = rng.randbytes(rng.randrange(1, 17))
        else:
            other = rng.choice(others) if others else data
            start = rng.randrange(len(other) + 1)
            made[at:] = other[start:] if how < 0.95 else other[at:]
    return bytes(made)


Mutate = Callable[[bytes, random.Random, Sequence[bytes]], bytes]
