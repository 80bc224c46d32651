# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Reads the log of a disk's writes that QEMU's `blklogwrites` and Linux' dm-log-writes make.

All numbers are little-endian and unsigned; positions and lengths count log sectors of `sectorsize`
bytes (a power of two, 512 to 64 KiB). Sector 0 is the superblock, entries follow without gaps:

    superblock   0  u64 magic = 0x6a736677736872      entry   0  u64 sector of the disk
                 8  u64 version = 1                           8  u64 number of sectors
                16  u64 number of entries                    16  u64 flags
                24  u32 sectorsize                           24  u64 data length

Each of them is padded to a sector. After an entry come the sectors that were written; none after
one with DISCARD, which only names what was discarded. A MARK is no write: it has no sectors, and
`data length` bytes of text right behind its header, in the same sector (QEMU makes no marks).
FLUSH says that the cache was flushed before this write (QEMU logs a flush as an entry of its own
without sectors); FUA that the write was on the disk when it was reported as done. METADATA (16) is
a remark of newer kernels. Writes of zeros have their zeros in the log.

QEMU logs a write when it is done, so the order is that of completions. It writes the superblock at
a flush and every few thousand entries: what comes after the number that it says is not read.

What is an error (`FormatError`, with the offset): wrong magic or version, another sector size,
unknown flags, an entry or its data behind the end of the log, a mark longer than its sector.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from bootc.errors import BootcError, FormatError

MAGIC = 0x6A736677736872
VERSION = 1
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_ENTRIES_MAX = 1 << 24
_SECTOR_MIN, _SECTOR_MAX = 512, 1 << 16
_SIZE_MAX = 1 << 62


class Flag(IntFlag):
    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


_KNOWN = Flag.FLUSH | Flag.FUA | Flag.DISCARD | Flag.MARK | Flag.METADATA


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry. `offset` and `size` are bytes of the disk; `data` is where in the log they are."""

    index: int
    offset: int
    size: int
    flags: Flag
    data: int
    mark: str | None = None

    @property
    def is_write(self) -> bool:
        """Whether it changes the disk; a discard does."""
        return self.size > 0

    @property
    def is_discard(self) -> bool:
        return Flag.DISCARD in self.flags

    @property
    def is_flush(self) -> bool:
        return Flag.FLUSH in self.flags


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteLog:
    """An open log; its file is read when data are asked for."""

    path: Path
    sector_size: int
    entries: tuple[Entry, ...]
    fd: int

    def read(self, entry: Entry, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes of what an entry wrote, from `start` on; all when it is not said."""
        wanted = entry.size - start if size is None else size
        if entry.is_discard:
            return bytes(wanted)
        data = os.pread(self.fd, wanted, entry.data + start)
        if len(data) != wanted:
            raise FormatError(str(self.path), entry.data, "the log ends in the middle of a write")
        return data

    @property
    def span(self) -> int:
        """The bytes that a disk must have to take all the writes."""
        return max((entry.offset + entry.size for entry in self.entries), default=0)


@contextmanager
def open_log(path: Path) -> Iterator[WriteLog]:
    """The log at `path`, checked from end to end. A program may still append to it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BootcError(
            f"cannot read the log of writes {path}: {error.strerror}",
            hint="a machine writes one for the disk that has `write_log` in its description",
        ) from error
    try:
        sector, entries = _read_all(fd, str(path))
        yield WriteLog(path=path, sector_size=sector, entries=entries, fd=fd)
    finally:
        os.close(fd)


def count_entries(path: Path) -> int:
    """How many entries a log has now, by its superblock; 0 before it has one."""
    try:
        with path.open("rb") as file:
            raw = file.read(_SUPER.size)
    except FileNotFoundError:
        return 0
    if len(raw) < _SUPER.size:
        return 0
    magic, _, count, _ = _SUPER.unpack(raw)
    return int(count) if magic == MAGIC else 0


def _read_all(fd: int, source: str) -> tuple[int, tuple[Entry, ...]]:
    raw = os.pread(fd, _SUPER.size, 0)
    if len(raw) < _SUPER.size:
        raise FormatError(source, 0, "is too short for a log of writes")
    magic, version, count, sector = _SUPER.unpack(raw)
    if magic != MAGIC:
        raise FormatError(source, 0, f"begins with {magic:#x}, a log of writes with {MAGIC:#x}")
    if version != VERSION:
        raise FormatError(source, 8, f"has version {version}, expected {VERSION}")
    if count > _ENTRIES_MAX:
        raise FormatError(source, 16, f"says that it has {count} entries")
    if not _SECTOR_MIN <= sector <= _SECTOR_MAX or sector & (sector - 1):
        raise FormatError(source, 24, f"{sector} is no sector size")
    end = os.fstat(fd).st_size
    entries = []
    position = sector
    for index in range(count):
        if position + sector > end:
            raise FormatError(source, position, f"ends before entry {index} of {count}")
        entry, position = _read_entry(fd, source, index, position, sector)
        if position > end:
            raise FormatError(source, entry.data, f"ends inside the data of entry {index}")
        entries.append(entry)
    return sector, tuple(entries)


def _read_entry(fd: int, source: str, index: int, position: int, sector: int) -> tuple[Entry, int]:
    """The entry at `position` and the position of the next one."""
    start, count, raw_flags, length = _ENTRY.unpack(os.pread(fd, _ENTRY.size, position))
    if raw_flags & ~int(_KNOWN):
        raise FormatError(source, position + 16, f"entry {index} has the flags {raw_flags:#x}")
    flags = Flag(raw_flags)
    if (start + count) * sector > _SIZE_MAX:
        raise FormatError(source, position, f"entry {index} is beyond any disk")
    mark = None
    if Flag.MARK in flags:
        if count or length > sector - _ENTRY.size:
            raise FormatError(source, position + 24, f"mark {index} is longer than its sector")
        mark = os.pread(fd, length, position + _ENTRY.size).decode("utf-8", "replace")
    entry = Entry(
        index=index,
        offset=start * sector,
        size=count * sector,
        flags=flags,
        data=position + sector,
        mark=mark,
    )
    return entry, position + sector + (0 if Flag.DISCARD in flags else entry.size)
