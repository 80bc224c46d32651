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

pytestmark = pytest.mark.root
SECTOR = 512
BROKEN = "KERNEL"


@contextmanager
def loop(image: Path) -> Iterator[str]:
    device = process.run(["losetup", "--find", "--show", str(image)], timeout=30).stdout.strip()
    try:
        yield device
    finally:
        process.run(["losetup", "--detach", device], timeout=30)


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
