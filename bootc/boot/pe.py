# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The sections of a PE file, as unified kernel images are (uapi-group.org/specifications, UKI).

PE/COFF, little endian:

| offset | size | what |
|---|---|---|
| 0 | 2 | `MZ`; 0x3C: u32, offset of the next |
| +0 | 4 | `PE\\0\\0`; +6: u16, number of sections; +20: u16, size of the optional header |
| +24 and that size | 40 each | the table of sections |

| offset | size | section |
|---|---|---|
| 0 | 8 | name, filled up by zero bytes |
| 8 | 4 | size in memory, at most that in the file; 16: size in the file; 20: offset in the file |

A section's content is as long as the smaller of both sizes, as the rest is padding. A UKI has
`.linux`, `.initrd` and `.cmdline` (text; it may end with zero bytes), and others. Of two with one
name the first counts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bootc.errors import FormatError
from bootc.records import dataclass

SECTIONS_MAX = 96
CMDLINE_MAX = 1 << 16
_START = 0x3C
_HEAD = struct.Struct("<4sHHIIIH")
_SECTION = struct.Struct("<8sIIII")
_ENTRY = 40
_AFTER_OPTIONAL = 24

ReadAt = Callable[[int, int], bytes]
"""(offset, size) to bytes: fewer at the end of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Where a section's content lies in the file."""

    offset: int
    size: int


def read_sections(read: ReadAt, length: int, source: str) -> dict[str, Section]:
    """The sections of a file of `length` bytes by their names. Raises `FormatError`."""
    begin = read(0, _START + 4)
    if not begin.startswith(b"MZ") or len(begin) < _START + 4:
        raise FormatError(source, 0, "is no PE file")
    at = int.from_bytes(begin[_START:], "little")
    head = read(at, _HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(b"PE\0\0"):
        raise FormatError(source, at, "is no PE file")
    count, optional = _HEAD.unpack(head)[2], _HEAD.unpack(head)[6]
    if count > SECTIONS_MAX:
        raise FormatError(source, at, f"has {count} sections, more than {SECTIONS_MAX}")
    where = at + _AFTER_OPTIONAL + optional
    table = read(where, _ENTRY * count)
    if len(table) < _ENTRY * count:
        raise FormatError(source, where, "ends in its table of sections")
    found: dict[str, Section] = {}
    for number in range(count):
        label, virtual, _, size, offset = _SECTION.unpack_from(table, _ENTRY * number)
        name = label.rstrip(b"\0").decode("ascii", "replace")
        if offset + size > length:
            raise FormatError(source, where + _ENTRY * number, f"{name} ends beyond the file")
        found.setdefault(name, Section(offset=offset, size=min(size, virtual) or size))
    return found


def read_cmdline(read: ReadAt, length: int, source: str) -> str:
    """The kernel arguments in a unified kernel image; "" without any. Raises `FormatError`."""
    section = read_sections(read, length, source).get(".cmdline")
    if section is None:
        return ""
    if section.size > CMDLINE_MAX:
        raise FormatError(source, section.offset, "its kernel arguments are too long")
    return read(section.offset, section.size).rstrip(b"\0").decode("utf-8", "replace").strip()
