# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which shared libraries a program needs, by its own ELF headers (no ldd, no chroot, no execution).

Source: the System V ABI, chapters 4 and 5. Program header types: 1 LOAD, 2 DYNAMIC, 3 INTERP.
Dynamic tags: 1 NEEDED, 5 STRTAB (an address), 15 RPATH, 29 RUNPATH.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bootc.errors import FormatError

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NEEDED, _STRTAB, _RPATH, _RUNPATH = 1, 5, 15, 29


@dataclass(frozen=True, slots=True, kw_only=True)
class Linkage:
    """What the dynamic linker reads: its own path (programs only), names, folders to search."""

    interpreter: str | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def is_elf(data: bytes) -> bool:
    """Whether `data` is an ELF file."""
    return data[:4] == b"\x7fELF"


def read_linkage(data: bytes, source: str) -> Linkage:
    """The dynamic section of the ELF file `data`; `source` names it in errors."""
    if not is_elf(data):
        raise FormatError(source, 0, "not an ELF file")
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError) as error:
        raise FormatError(source, None, f"damaged ELF file: {error}") from error


def _read(data: bytes) -> Linkage:
    wide = data[4] == 2
    order = "<" if data[5] == 1 else ">"
    segments = _segments(data, order, wide=wide)
    interpreter: str | None = None
    entries: list[tuple[int, int]] = []
    for segment in segments:
        if segment.kind == _INTERP:
            interpreter = _string(data, segment.offset)
        if segment.kind == _DYNAMIC:
            body = data[segment.offset : segment.offset + segment.size]
            form = struct.Struct(order + ("qQ" if wide else "iI"))
            entries = list(form.iter_unpack(body[: len(body) - len(body) % form.size]))
    table = next((value for tag, value in entries if tag == _STRTAB), None)
    if table is None:
        return Linkage(interpreter=interpreter, needed=(), search=())
    start = _file_offset(segments, table)
    needed = tuple(_string(data, start + value) for tag, value in entries if tag == _NEEDED)
    search: list[str] = []
    for tag, value in entries:
        if tag in (_RPATH, _RUNPATH):
            search += [part for part in _string(data, start + value).split(":") if part]
    return Linkage(interpreter=interpreter, needed=needed, search=tuple(search))


def _segments(data: bytes, order: str, *, wide: bool) -> list[_Segment]:
    if wide:
        offset = struct.unpack_from(order + "Q", data, 32)[0]
        size, count = struct.unpack_from(order + "HH", data, 54)
    else:
        offset = struct.unpack_from(order + "I", data, 28)[0]
        size, count = struct.unpack_from(order + "HH", data, 42)
    found: list[_Segment] = []
    for index in range(count):
        at = offset + index * size
        if wide:
            kind, _, start, address, _, length = struct.unpack_from(order + "IIQQQQ", data, at)
        else:
            kind, start, address, _, length = struct.unpack_from(order + "IIIII", data, at)
        found.append(_Segment(kind=kind, offset=start, address=address, size=length))
    return found


def _file_offset(segments: list[_Segment], address: int) -> int:
    for segment in segments:
        if segment.kind == _LOAD and 0 <= address - segment.address < segment.size:
            return segment.offset + address - segment.address
    raise ValueError(f"address {address:#x} lies in no segment")


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
