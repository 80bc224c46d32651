# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Folders of a FAT file system that no tool would make; those that tools make are in the host's
tests of the repair."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.boot.fat import find_gaps, root_files
from bootc.errors import FormatError

SECTOR = 512
CLUSTERS = 66000
TABLE = 32 * SECTOR
DATA = TABLE + (CLUSTERS + 2) * 4 // SECTOR * SECTOR + SECTOR


def boot_sector(*, root: int = 2) -> bytes:
    """A FAT32 with clusters of one sector and one FAT."""
    sectors = DATA // SECTOR + CLUSTERS
    head = bytearray(SECTOR)
    struct.pack_into("<HBHB", head, 11, SECTOR, 1, TABLE // SECTOR, 1)
    struct.pack_into("<I4xI", head, 32, sectors, (DATA - TABLE) // SECTOR)
    struct.pack_into("<I", head, 36, (DATA - TABLE) // SECTOR)
    struct.pack_into("<I", head, 44, root)
    head[510:] = b"\x55\xaa"
    return bytes(head)


def slot(name: str, *, cluster: int = 0, attributes: int = 0x20) -> bytes:
    high, low = cluster >> 16, cluster & 0xFFFF
    return struct.pack("<11sB8xH4xH4x", name.ljust(11).encode(), attributes, high, low)


def place(cluster: int) -> int:
    return DATA + (cluster - 2) * SECTOR


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "fat", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, boot_sector(), 0)
        os.ftruncate(fd, place(CLUSTERS + 2))
        yield fd
    finally:
        os.close(fd)


def put(fd: int, cluster: int, data: bytes, *, following: int = 0x0FFFFFFF) -> None:
    os.pwrite(fd, data, place(cluster))
    os.pwrite(fd, struct.pack("<I", following), TABLE + cluster * 4)


def test_the_free_slots_up_to_the_last_mark_are_counted(disk: int) -> None:
    removed = b"\xe5" + bytes(31)
    put(disk, 2, removed + slot("A") + bytes(32) + slot("B") + removed, following=9)
    put(disk, 9, b"", following=70)
    put(disk, 70, bytes(64) + slot("C") + removed + slot("D"))
    assert find_gaps(disk) == {"": 1 + 1 + 12 + 16 + 2}


def test_folders_are_named_by_their_path(disk: int) -> None:
    far = 65536 + 40
    put(disk, 2, slot("EFI", cluster=3, attributes=0x10))
    put(disk, 3, slot(".", cluster=3, attributes=0x10) + slot("LINUX", cluster=far, attributes=16))
    put(disk, far, bytes(32) + slot("BOOTC_~1EFI"))
    assert find_gaps(disk) == {"EFI/LINUX": 1}


def test_what_is_sound_has_no_gaps(disk: int) -> None:
    put(disk, 2, slot("A") + b"\xe5" + bytes(31) + slot("B") + slot("D", cluster=3, attributes=16))
    put(disk, 3, b"")
    assert find_gaps(disk) == {}


def test_files_labels_and_deleted_folders_are_no_folders(disk: int) -> None:
    entries = [
        slot("FILE", cluster=3),
        slot("LABEL", cluster=3, attributes=0x18),
        slot("\x05", cluster=3, attributes=0x0F),
        b"\xe5" + slot("GONE", cluster=3, attributes=0x10)[1:],
    ]
    put(disk, 2, b"".join(entries))
    put(disk, 3, bytes(32) + b"content of a file")
    assert find_gaps(disk) == {}


def test_circles_and_names_that_lead_nowhere_end(disk: int) -> None:
    entries = [
        slot("SELF", cluster=2, attributes=0x10),
        slot("OUTSIDE", cluster=CLUSTERS + 2, attributes=0x10),
        slot("ZERO", cluster=0, attributes=0x10),
        slot("ROUND", cluster=5, attributes=0x10),
    ]
    put(disk, 2, b"".join(entries))
    put(disk, 5, slot("A") * 16, following=6)
    put(disk, 6, slot("A") * 16, following=5)
    assert find_gaps(disk) == {}


def test_files_of_the_root(disk: int) -> None:
    entries = [
        slot("A", cluster=3),
        slot("FSCK0000REC", attributes=0),
        slot("LABEL", attributes=0x08),
        slot("FOLDER", cluster=5, attributes=0x10),
        slot("\x01l\x00o\x00n\x00g", attributes=0x0F),
        b"\xe5" + slot("GONE")[1:],
    ]
    put(disk, 2, b"".join(entries))
    put(disk, 5, slot("BELOW"))
    assert root_files(disk) == {"A", "FSCK0000.REC"}


@pytest.mark.parametrize(
    "head", [b"", b"\0" * SECTOR, b"\xff" * SECTOR, boot_sector()[:13] + b"\0" + boot_sector()[14:]]
)
def test_what_is_no_fat_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "fat"
    path.write_bytes(head)
    with path.open("rb") as file, pytest.raises(FormatError):
        find_gaps(file.fileno())
