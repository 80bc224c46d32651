# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Logs of writes, made byte by byte: whole ones, and each way that one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc.errors import BootcError, FormatError
from tests.writelogs import entry, superblock, write_log
from vmtests.blklog import Flag, count_entries, open_log


def test_a_log_as_qemu_writes_it(tmp_path: Path) -> None:
    """`write 0 1k`, `write -z 4k 512`, `discard 8k 1k`, `flush`, and a write that was FUA."""
    path = write_log(
        tmp_path / "log",
        entry(0, b"\x11" * 1024),
        entry(8, bytes(512)),
        entry(16, flags=4, count=2),
        entry(0, flags=1),
        entry(1, b"\x22" * 512, flags=2),
    )
    with open_log(path) as log:
        assert log.sector_size == 512
        assert [(one.offset, one.size, one.flags) for one in log.entries] == [
            (0, 1024, Flag(0)),
            (4096, 512, Flag(0)),
            (8192, 1024, Flag.DISCARD),
            (0, 0, Flag.FLUSH),
            (512, 512, Flag.FUA),
        ]
        assert [one.is_write for one in log.entries] == [True, True, True, False, True]
        assert log.read(log.entries[0]) == b"\x11" * 1024
        assert log.read(log.entries[0], 1000, 24) == b"\x11" * 24
        assert log.read(log.entries[2]) == bytes(1024)
        assert log.read(log.entries[4]) == b"\x22" * 512
        assert log.span == 9216
    assert count_entries(path) == 5


def test_bytes_of_qemu_10() -> None:
    """The first 32 bytes of the superblock and of a write of 8 sectors at 0, as QEMU wrote them."""
    assert superblock(11)[:32].hex() == (
        "7268737766736a00" + "0100000000000000" + "0b00000000000000" + "0002000000000000"
    )
    assert entry(0, b"\x11" * 4096)[:24].hex() == "0" * 16 + "0800000000000000" + "0" * 16


def test_large_sectors_and_marks(tmp_path: Path) -> None:
    path = write_log(
        tmp_path / "log",
        entry(1, b"a" * 4096, sector=4096),
        entry(0, flags=8, mark=b"before finalize", sector=4096),
        entry(2, b"b" * 8192, sector=4096),
        sector=4096,
    )
    with open_log(path) as log:
        assert [one.mark for one in log.entries] == [None, "before finalize", None]
        assert log.entries[2].offset == 8192
        assert log.read(log.entries[2]) == b"b" * 8192


def test_what_follows_the_last_counted_entry_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(superblock(1) + entry(0, b"a" * 512) + entry(1, b"b" * 512)[:100])
    with open_log(path) as log:
        assert len(log.entries) == 1


def test_log_that_has_not_begun(tmp_path: Path) -> None:
    assert count_entries(tmp_path / "none") == 0
    (tmp_path / "empty").touch()
    assert count_entries(tmp_path / "empty") == 0
    with pytest.raises(BootcError, match="cannot read the log") as caught, open_log(tmp_path / "x"):
        pass
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "offset", "said"),
    [
        (b"", 0, "too short"),
        (superblock(0, magic=0x1234), 0, "begins with 0x1234"),
        (superblock(0, version=2), 8, "version 2"),
        (superblock(1 << 60), 16, "entries"),
        (superblock(0, sector=0), 24, "sector size"),
        (superblock(0, sector=768), 24, "sector size"),
        (superblock(2) + entry(0, b"a" * 512), 1536, "before entry 1 of 2"),
        (superblock(1) + entry(0, b"a" * 512)[:-1], 1024, "inside the data of entry 0"),
        (superblock(1) + entry(0, count=1 << 40), 1024, "inside the data of entry 0"),
        (superblock(1) + entry(1 << 62, b"a" * 512), 512, "beyond any disk"),
        (superblock(1) + entry(0, flags=32), 528, "flags 0x20"),
        (superblock(1) + entry(0, b"a" * 512, flags=8), 536, "mark 0"),
        (superblock(1) + entry(0, flags=8, mark=b"x" * 481)[:512] + bytes(99), 536, "mark 0"),
    ],
)
def test_damage_is_refused_by_its_place(
    tmp_path: Path, data: bytes, offset: int, said: str
) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said) as caught, open_log(path):
        pass
    assert caught.value.where == offset
