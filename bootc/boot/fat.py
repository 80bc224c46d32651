# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The folders of a FAT file system, as they are on the disk.

Source: Microsoft, FAT: General Overview of On-Disk Format, 1.03 (the FAT specification that UEFI
refers to). Numbers are little-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bootc.errors import FormatError

_BOOT_SECTOR = struct.Struct("<11xHBHBHH1xH8xII4xI")
"""Bytes per sector, sectors per cluster, reserved sectors, FATs, slots of the root (0 for FAT32),
sectors (16 bits), sectors of a FAT (16 bits), sectors (32 bits), sectors of a FAT (FAT32), and the
root's first cluster (FAT32)."""
_STATE, _STATE_FAT32 = 37, 65
"""Where the byte is whose bit 0 Linux sets while it is mounted for writing."""
_SOURCE = "the ESP"
_SECTOR_SIZES = (512, 1024, 2048, 4096)
_FAT12_CLUSTERS = 4085
"""With so many clusters it is a FAT16."""
_FIRST_CLUSTER = 2
_SLOT = struct.Struct("<11sB8xH4xH4x")
"""Name, attributes, high and low half of the first cluster; 32 bytes."""
_VOLUME_LABEL, _DIRECTORY = 0x08, 0x10
_END, _DELETED = 0x00, 0xE5
"""First bytes of a name: no slot is used from here on; this one isn't."""
_MAX_FOLDER_BYTES = 2 << 20
"""What the specification allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where things are, in bytes; `bits` is the width of a number in the FAT."""

    bits: int
    table: int
    data: int
    cluster_size: int
    clusters: int
    root: int
    root_slots: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class _Slot:
    name: bytes
    attributes: int
    cluster: int

    @property
    def is_free(self) -> bool:
        return self.name[0] in (_END, _DELETED)

    @property
    def is_folder(self) -> bool:
        """Whether it leads to a folder below this one; parts of long names have all attributes."""
        kind = self.attributes & (_DIRECTORY | _VOLUME_LABEL)
        return kind == _DIRECTORY and not self.is_free and not self.name.startswith(b".")

    @property
    def is_file(self) -> bool:
        kind = self.attributes & (_DIRECTORY | _VOLUME_LABEL)
        return not kind and not self.is_free

    @property
    def short_name(self) -> str:
        stem, suffix = (part.decode("latin-1").rstrip() for part in (self.name[:8], self.name[8:]))
        return f"{stem}.{suffix}" if suffix else stem


def is_dirty(fd: int) -> bool:
    """Whether it was mounted for writing by Linux, and not unmounted; raises like `find_gaps`."""
    place = _STATE_FAT32 if _read_layout(fd).bits == 32 else _STATE
    return bool(os.pread(fd, 512, 0)[place] & 1)


def find_gaps(fd: int) -> dict[str, int]:
    """The folders that have an end mark with names behind it, and how many of their slots, up to
    the last such mark, are free.

    Such a mark is left where a cut kept only the second of two sectors of a folder. Linux reads on
    behind it, the firmware and its boot loaders don't: what is written there they never see.
    A folder's name is its path of short names, which is empty for the root. `fd` is a device, which
    may be mounted. Raises `FormatError` when it has no FAT file system, or `OSError`.
    """
    gaps = {}
    for path, folder in _folders(fd, _read_layout(fd)):
        used = [number for number, slot in enumerate(folder) if slot.name[0] != _END]
        marks = [number for number in range(max(used, default=0)) if not folder[number].name[0]]
        if marks:
            gaps[path] = sum(slot.is_free for slot in folder[: marks[-1] + 1])
    return gaps


def root_files(fd: int) -> set[str]:
    """The short names (`NAME.EXT`) of the files in the root folder; raises like `find_gaps`."""
    _, root = next(_folders(fd, _read_layout(fd)))
    return {slot.short_name for slot in root if slot.is_file}


def _read_layout(fd: int) -> _Layout:
    head = os.pread(fd, 512, 0)
    if len(head) < 512 or head[510:] != b"\x55\xaa":
        raise FormatError(_SOURCE, 0, "no boot sector of a FAT file system")
    sector, per_cluster, reserved, tables, slots, few, small, many, large, root = (
        _BOOT_SECTOR.unpack_from(head)
    )
    if sector not in _SECTOR_SIZES or not per_cluster or not reserved or not tables:
        raise FormatError(_SOURCE, 11, "a FAT file system cannot be laid out like this")
    after_tables = (reserved + tables * (small or large)) * sector
    root_size = slots * _SLOT.size
    data = after_tables + -(-root_size // sector) * sector
    clusters = max(0, (few or many) * sector - data) // (per_cluster * sector)
    # A FAT32 with few clusters is none to the specification, but is to Linux and the firmware.
    bits = 32 if not small else 12 if clusters < _FAT12_CLUSTERS else 16
    return _Layout(
        bits=bits,
        table=reserved * sector,
        data=data,
        cluster_size=per_cluster * sector,
        clusters=clusters,
        root=root if bits == 32 else 0,
        root_slots=None if bits == 32 else (after_tables, root_size),
    )


def _folders(fd: int, layout: _Layout) -> Iterator[tuple[str, list[_Slot]]]:
    """Path and slots of every folder, the root first; of one that has two names once."""
    if layout.root_slots is not None:
        offset, size = layout.root_slots
        root = _parse(os.pread(fd, size, offset), layout)
    else:
        root = _read_folder(fd, layout.root, layout)
    seen = {layout.root}
    waiting = [("", root)]
    while waiting:
        path, folder = waiting.pop()
        yield path, folder
        for slot in folder:
            if slot.is_folder and slot.cluster not in seen:
                seen.add(slot.cluster)
                below = f"{path}/{slot.short_name}".lstrip("/")
                waiting.append((below, _read_folder(fd, slot.cluster, layout)))


def _read_folder(fd: int, cluster: int, layout: _Layout) -> list[_Slot]:
    folder: list[_Slot] = []
    # A chain that runs in a circle ends there, too.
    for _ in range(_MAX_FOLDER_BYTES // layout.cluster_size + 1):
        number = cluster - _FIRST_CLUSTER
        if not 0 <= number < layout.clusters:
            break
        offset = layout.data + number * layout.cluster_size
        folder += _parse(os.pread(fd, layout.cluster_size, offset), layout)
        cluster = _next_cluster(fd, cluster, layout)
    return folder


def _next_cluster(fd: int, cluster: int, layout: _Layout) -> int:
    """The number in the (first) FAT; what ends a chain is no cluster's number."""
    place = cluster * layout.bits
    number = int.from_bytes(os.pread(fd, 4, layout.table + place // 8), "little") >> place % 8
    # Of the 32 bits of a FAT32 four are reserved.
    return number & ((1 << min(layout.bits, 28)) - 1)


def _parse(data: bytes, layout: _Layout) -> list[_Slot]:
    found = []
    for place in range(0, len(data) - _SLOT.size + 1, _SLOT.size):
        name, attributes, high, low = _SLOT.unpack_from(data, place)
        cluster = low | high << 16 if layout.bits == 32 else low
        found.append(_Slot(name, attributes, cluster))
    return found
