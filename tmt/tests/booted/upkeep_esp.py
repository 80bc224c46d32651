#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Names that a power cut left behind the end of an ESP's folder are seen by the firmware again."""

import os
import subprocess

import booted

from bootc.boot.esp import mounted_esp

FILE = "/var/tmp/booted-esp.img"
FIRST, SECOND = "/run/booted-esp-first", "/run/booted-esp-second"
NAMES = [f"F{number:03}" for number in range(100)]
SECTOR, SLOT = 512, 32
NEW = "a name that is long enough to need more slots than there are between two names.conf"


def make_esp() -> set[str]:
    """An ESP with a folder of one cluster, of which a sector was not written; the names left."""
    with open(FILE, "wb") as file:
        file.truncate(128 << 20)
    booted.output("mkfs.vfat", "-F", "32", "-s", "8", FILE)
    booted.output("mount", "-o", "loop", FILE, FIRST)
    try:
        os.mkdir(f"{FIRST}/kernels")
        for name in NAMES:
            with open(f"{FIRST}/kernels/{name}", "w"):
                pass
    finally:
        booted.output("umount", FIRST)
    with open(FILE, "r+b") as file:
        data = file.read(8 << 20)
        start = data.index(b"F040".ljust(11)) // SECTOR * SECTOR
        lost = {data[place : place + 4].decode() for place in range(start, start + SECTOR, SLOT)}
        file.seek(start)
        file.write(bytes(SECTOR))
    booted.expect_equal(len(lost), SECTOR // SLOT, "names lost")
    return {name for name in NAMES if name not in lost}


def seen_by_firmware() -> set[str]:
    """The folder's short names up to the first slot that says that none follows."""
    with open(FILE, "rb") as file:
        data = file.read(8 << 20)
    place = data.index(b"F000".ljust(11))
    names = set()
    while data[place]:
        if data[place] != 0xE5 and data[place + 11] != 0x0F:
            names.add(data[place : place + 8].decode().rstrip())
        place += SLOT
    return names


def check(is_mounted: bool) -> None:
    names = make_esp()
    booted.expect(seen_by_firmware() < names, "the firmware doesn't see all names")
    device = booted.output("losetup", "--find", "--show", FILE).strip()
    try:
        if is_mounted:
            booted.output("mount", device, FIRST)
        with mounted_esp(device, SECOND), open(f"{SECOND}/kernels/{NEW}", "w"):
            booted.expect_equal(set(os.listdir(f"{SECOND}/kernels")), names | {NEW}, "names")
    finally:
        subprocess.run(["umount", FIRST], stderr=subprocess.DEVNULL)
        subprocess.run(["losetup", "--detach", device])
    what = "mounted before" if is_mounted else "not mounted"
    booted.expect_equal(seen_by_firmware(), names | {"ANAMET~1"}, f"what the firmware sees, {what}")
    booted.output("fsck.vfat", "-n", FILE)


def main() -> None:
    for folder in (FIRST, SECOND):
        os.makedirs(folder, exist_ok=True)
    try:
        check(is_mounted=False)
        check(is_mounted=True)
    finally:
        os.unlink(FILE)


booted.main(main)
