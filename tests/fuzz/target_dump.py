# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Dump files: what the parser accepts is formatted, parsed and formatted again to the same text."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bootc.composefs.digest import Algorithm
from bootc.composefs.dumpfile import format_dump, parse_dump
from bootc.composefs.erofs_format import FormatVersion
from bootc.composefs.erofs_reader import read_image
from bootc.composefs.erofs_writer import write_image
from bootc.errors import BootcError, FormatError
from bootc.tree import walk
from tests.fuzz import mutator

SIZE_MAX = 8192

_DIGEST = b"5a" * 32
_TOKENS = (
    *(
        b"/",
        b"-",
        b"0",
        b"1",
        b"",
        b" ",
        b"\\x2d",
        b"\\x",
        b"\\",
        b"\\n",
        b"=",
        b"@",
        b"/a",
        b"/a/b",
    ),
    *(b"..", b"/.", b"/..", b"//", b"/a/", b"40755", b"100644", b"120777", b"20644", b"60600"),
    *(b"10600", b"140600", b"@100644", b"@120000", b"170000", b"1000000", b"-1", b"0.0", b"1.5"),
    *(b"-1.999999999", b"1.1000000000", b"9223372036854775807.0", b"-9223372036854775808.0"),
    *(b"9223372036854775808.0", b"18446744073709551615", b"18446744073709551616", b"4294967295"),
    *(b"4294967296", b"5000", b"5001", b"5a/" + b"5a" * 31, _DIGEST, _DIGEST * 2, _DIGEST[:-1]),
    *(b"user.x=1", b"user.x=", b"trusted.overlay.opaque=y", b"user.x", b"=x", b"a\\x00=b"),
    *(b"\\x2f", b"\xff", b"\n", b"\r", b"\t", b"+1", b"1_0", b"0x10", b"1e3", b" 1"),
)


def check(data: bytes) -> BootcError | None:
    """Why the dump was refused, or None. Raises for anything that must not happen."""
    try:
        root = parse_dump(data)
    except FormatError as error:
        return error
    text = format_dump(root)
    again = parse_dump(text)
    assert format_dump(again) == text, "formatted and parsed it is another tree"
    if len(data) % 4:
        return None
    try:
        image = write_image(root, version=FormatVersion.V2, algorithm=Algorithm.SHA256)
    except BootcError:
        return None
    try:
        back = read_image(image)
    except FormatError:
        # A link count of the dump that isn't the number of names; V2's limits.
        return None
    for _, node in walk(root):
        node.stat.mtime_nsec = 0
    assert format_dump(back).count(b"\n") == format_dump(root).count(b"\n")
    return None


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Other fields, other lines, and now and then other bytes."""
    if rng.random() < 0.2:
        return mutator.mutate(data, rng, others)
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        how = rng.random()
        if how < 0.55:
            fields = lines[at].split(b" ")
            place = rng.randrange(len(fields))
            pick = rng.random()
            if pick < 0.6:
                fields[place] = rng.choice(_TOKENS)
            elif pick < 0.7:
                fields[place] = b"%d" % mutator.interesting(rng, rng.choice((1, 2, 4, 8)))
            elif pick < 0.8:
                fields[place] += rng.choice(_TOKENS)
            elif pick < 0.9:
                fields.insert(place, rng.choice(_TOKENS))
            else:
                del fields[place]
            lines[at] = b" ".join(fields)
        elif how < 0.7:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        elif how < 0.8:
            del lines[at]
            if not lines:
                return b""
        elif how < 0.9:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif others:
            lines.insert(at, rng.choice(rng.choice(others).split(b"\n")))
    return b"\n".join(lines)


def seeds() -> list[bytes]:
    """Dumps with every type, link and escape."""
    root = b"/ 4096 40755 3 0 0 0 0.0 - - - user.x=1\n"
    return [
        root,
        root
        + b"/a 5 100644 1 1000 100 0 1.5 - hello - security.selinux=system_u:object_r\\x00\n"
        + b"/b 0 20644 1 0 0 259 -3.0 - - -\n/c 0 60644 1 0 0 7 0.0 - - -\n"
        + b"/d 4096 40700 2 0 0 0 0.999999999 - - - trusted.overlay.opaque=y\n"
        + b"/d/e 3 120777 1 0 0 0 0.0 a\\x20b - -\n/d/f 0 10644 1 0 0 0 0.0 - - -\n"
        + b"/d/g 0 140644 1 0 0 0 0.0 - - -\n/h 0 100644 1 0 0 0 0.0 - - -\n"
        + b"/i 70000 100644 2 0 0 0 0.0 5a/"
        + b"5a" * 31
        + b" - "
        + _DIGEST
        + b"\n"
        + b"/j 0 @120000 - - - - 0.0 /i - -\n/k 99 100644 1 0 0 0 0.0 - - -\n"
        + b"/l 99 100644 1 0 0 0 0.0 some/path - -\n/00 0 20644 1 0 0 0 0.0 - - -\n",
        root + b"/\\xff\\x20\\x3d 1 100644 1 0 0 0 0.0 - \\x2d - user.\\x3d=\\x3d\\n",
    ]
