# SPDX-License-Identifier: Apache-2.0 OR MIT
"""An ESP that a power cut left is repaired before it is written to.

Needs root, for loop devices, and dosfstools and mtools; the kernel needn't know vfat.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc import process
from bootc.boot.esp_repair import repair
from bootc.boot.fat import find_gaps
from bootc.linux.loop import open_loop

pytestmark = pytest.mark.root
SECTOR = 512
BROKEN = "KERNEL"


@contextmanager
def loop(image: Path) -> Iterator[str]:
    with image.open("r+b") as file, open_loop(file.fileno(), writable=True) as device:
        yield device


def make_vfat(image: Path, *, bits: int, dirty: bool) -> None:
    """A vfat with a whole file, and one whose name leads to a cluster that is free."""
    with image.open("wb") as file:
        file.truncate(64 << 20)
    process.run(["mkfs.vfat", "-F", str(bits), str(image)], timeout=30)
    content = image.with_suffix(".content")
    content.write_bytes(b"k" * 100)
    for name in ("WHOLE", BROKEN):
        process.run(["mcopy", "-i", str(image), str(content), f"::/{name}"], timeout=30)
    with image.open("r+b") as file:
        head = file.read(SECTOR)
        (reserved,) = struct.unpack_from("<H", head, 14)
        (size,) = struct.unpack_from("<I", head, 36) if bits == 32 else (0,)
        size = size or struct.unpack_from("<H", head, 22)[0]
        whole = image.read_bytes()
        (cluster,) = struct.unpack_from("<H", whole, whole.index(BROKEN.encode().ljust(11)) + 26)
        for table in range(2):
            file.seek((reserved + table * size) * SECTOR + cluster * bits // 8)
            file.write(bytes(bits // 8))
        if dirty:
            file.seek(65 if bits == 32 else 37)
            file.write(b"\x01")


def make_twins(image: Path) -> None:
    """A vfat with two names for one folder that has a file, as after a torn exchange."""
    with image.open("wb") as file:
        file.truncate(64 << 20)
    process.run(["mkfs.vfat", "-F", "32", str(image)], timeout=30)
    entry = image.with_suffix(".conf")
    entry.write_text("title One\n")
    for folder in ("LOADER", "LOADER/ENTRIES", "LOADER/STAGED"):
        process.run(["mmd", "-i", str(image), f"::/{folder}"], timeout=30)
    process.run(["mcopy", "-i", str(image), str(entry), "::/LOADER/ENTRIES/ONE"], timeout=30)
    whole = bytearray(image.read_bytes())
    first, second = whole.index(b"ENTRIES    \x10"), whole.index(b"STAGED     \x10")
    whole[second + 20 : second + 28] = whole[first + 20 : first + 28]
    whole[65] = 1
    image.write_bytes(whole)


def make_gap(image: Path, *, bits: int, folder: str) -> list[str]:
    """A vfat with a folder of many files, of which a cut lost one sector with 16 names; the others.

    mtools stops there, as the firmware does.
    """
    names = [f"F{number:03}" for number in range(100)]
    with image.open("wb") as file:
        file.truncate((2 if bits == 12 else 64) << 20)
    process.run(["mkfs.vfat", "-F", str(bits), str(image)], timeout=30)
    source = image.with_suffix(".files")
    source.mkdir()
    for name in names:
        (source / name).touch()
    if folder:
        process.run(["mmd", "-i", str(image), f"::/{folder}"], timeout=30)
    files = [str(source / name) for name in names]
    process.run(["mcopy", "-i", str(image), *files, f"::/{folder}"], timeout=30)
    whole = bytearray(image.read_bytes())
    start = whole.index(b"F040".ljust(11)) // SECTOR * SECTOR
    lost = {whole[place : place + 4].decode() for place in range(start, start + SECTOR, 32)}
    whole[start : start + SECTOR] = bytes(SECTOR)
    image.write_bytes(whole)
    assert len(lost) == SECTOR // 32
    return [name for name in names if name not in lost]


def listed(image: Path, folder: str) -> list[str]:
    argv = ["mdir", "-b", "-i", str(image), f"::/{folder}"]
    done = process.run(argv, timeout=30, env={"MTOOLS_SKIP_CHECK": "1"})
    return [line.rpartition("/")[2] for line in done.stdout.splitlines()]


def complaints(image: Path) -> str:
    done = process.run(["fsck.vfat", "-n", str(image)], timeout=30, check=False)
    return done.stdout if done.status else ""


@pytest.mark.parametrize("bits", [16, 32])
def test_it_is_repaired(tmp_path: Path, bits: int) -> None:
    image = tmp_path / "esp"
    make_vfat(image, bits=bits, dirty=True)
    assert BROKEN in complaints(image)
    with loop(image) as device:
        repair(device)
    assert complaints(image) == ""
    found = process.run(["mdir", "-b", "-i", str(image), "::/"], timeout=30).stdout
    assert "WHOLE" in found


def test_of_two_names_of_a_folder_the_menu_stays(tmp_path: Path) -> None:
    image = tmp_path / "esp"
    make_twins(image)
    assert "share clusters" in complaints(image)
    with loop(image) as device:
        repair(device)
    assert complaints(image) == ""
    argv = ["mdir", "-b", "-/", "-i", str(image), "::/LOADER"]
    found = process.run(argv, timeout=30).stdout.splitlines()
    assert found == ["::/LOADER/ENTRIES/", "::/LOADER/ENTRIES/ONE"]


def test_what_has_no_name_any_more_is_told_of(tmp_path: Path) -> None:
    """As mtools counts: the files that fsck.vfat makes of it, and none of the other files."""
    image = tmp_path / "esp"
    make_vfat(image, bits=32, dirty=True)
    whole = bytearray(image.read_bytes())
    place = whole.index(b"WHOLE".ljust(11))
    whole[place] = 0xE5
    image.write_bytes(whole)
    with loop(image) as device:
        made = repair(device)
    assert made == ["FSCK0000.REC"]
    assert sorted(listed(image, "")) == [*made, BROKEN]


@pytest.mark.parametrize("folder", ["", "KERNELS"])
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_names_behind_the_end_of_a_folder_are_found(tmp_path: Path, bits: int, folder: str) -> None:
    """Where mtools stops, as the firmware does; filling that takes a kernel that knows vfat."""
    image = tmp_path / "esp"
    names = make_gap(image, bits=bits, folder=folder)
    assert names[-1] not in listed(image, folder)
    with image.open("rb") as file:
        assert find_gaps(file.fileno()) == {folder: SECTOR // 32}


@pytest.mark.parametrize("bits", [16, 32])
def test_what_was_unmounted_is_left_alone(tmp_path: Path, bits: int) -> None:
    image = tmp_path / "esp"
    make_vfat(image, bits=bits, dirty=False)
    before = image.read_bytes()
    with loop(image) as device:
        repair(device)
    assert image.read_bytes() == before


def test_what_is_in_use_is_left_alone(tmp_path: Path) -> None:
    image = tmp_path / "esp"
    make_vfat(image, bits=32, dirty=True)
    before = image.read_bytes()
    with loop(image) as device:
        # A mount claims its device like this.
        claim = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            repair(device)
        finally:
            os.close(claim)
    assert image.read_bytes() == before


def test_without_fsck_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = tmp_path / "esp"
    make_vfat(image, bits=32, dirty=True)
    with (
        loop(image) as device,
        caplog.at_level(logging.WARNING),
        monkeypatch.context() as patched,
    ):
        patched.setattr(process, "find_program", lambda _: None)
        repair(device)
    assert "dosfstools" in caplog.text
    assert complaints(image)
