# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Disks for tests, made of a mock machine without a mount: GPT, an ESP, an ext4 root.

Needs mkfs.vfat, mcopy, mke2fs, sfdisk.
"""

from __future__ import annotations

from pathlib import Path

from bootc import process
from tests.sysroots import MockMachine

MIB = 1 << 20
ESP_START, ESP_SIZE = 1 * MIB, 40 * MIB
ROOT_START, ROOT_SIZE = 41 * MIB, 64 * MIB


def make_disk(machine: MockMachine, disk: Path) -> None:
    """A GPT disk with an ESP and a root, filled without a mount."""
    esp, root = disk.with_suffix(".esp"), disk.with_suffix(".root")
    for path, size in ((esp, ESP_SIZE), (root, ROOT_SIZE), (disk, 106 * MIB)):
        with path.open("wb") as file:
            file.truncate(size)
    process.run(["mkfs.vfat", "-F", "32", "-s", "1", str(esp)], timeout=30)
    folders = [str(path) for path in machine.esp.iterdir()]
    process.run(["mcopy", "-s", "-Q", "-i", str(esp), *folders, "::/"], timeout=30)
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", "verity", "-b", "4096"]
    process.run([*argv, "-d", str(machine.root), str(root)], timeout=60)
    table = (
        "label: gpt\n"
        "start=1MiB,size=40MiB,type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
        "start=41MiB,size=64MiB,type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    )
    process.run(["sfdisk", "-q", str(disk)], stdin=table, timeout=30)
    with disk.open("r+b") as file:
        for start, part in ((ESP_START, esp), (ROOT_START, root)):
            file.seek(start)
            file.write(part.read_bytes())
