# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The partition plan, sfdisk's script, and reading the table that sfdisk writes."""

import re
import shutil
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError, FormatError
from bootc.install.disk import DiskPlan, layout, plan_disk, sfdisk_script
from bootc.install.filesystem import mkfs_root_argv
from bootc.install.options import MIB, DiskOptions, RootFilesystem
from bootc.linux import blockdev

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
ROOT = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"


def _plan(machine: str = "x86_64", root_size: int | None = None) -> DiskPlan:
    return DiskPlan(
        device="/dev/vdb",
        disk="vdb",
        size=2048 * MIB,
        wipe=True,
        partitions=layout(machine, esp_size=256 * MIB, root_size=root_size),
        filesystem=RootFilesystem.EXT4,
        root_uuid="2f8a7a1e-0000-4000-8000-000000000001",
    )


def test_script() -> None:
    text = re.sub(r"label-id: \S+", "label-id: X", sfdisk_script(_plan()))
    assert text == (
        "label: gpt\n"
        "label-id: X\n"
        'size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name="BIOS-BOOT", bootable\n'
        f'size=256MiB, type={ESP.upper()}, name="EFI-SYSTEM"\n'
        f'type={ROOT.upper()}, name="root"\n'
    )
    assert sfdisk_script(_plan()) != sfdisk_script(_plan())


def test_arm_has_no_bios_partition() -> None:
    plan = _plan("aarch64", root_size=512 * MIB)
    assert [part.name for part in plan.partitions] == ["EFI-SYSTEM", "root"]
    assert plan.root.type == "b921b045-1df0-41c3-af44-4c6f280d3fae"
    assert plan.root.size == 512 * MIB
    assert plan.esp.number == 1


def test_unknown_architecture() -> None:
    with pytest.raises(BootcError, match="vax"):
        layout("vax", esp_size=MIB)


def test_description() -> None:
    assert _plan().describe() == [
        "disk /dev/vdb (2.0 GiB), wiped first",
        "  1: BIOS-BOOT, 1 MiB, type 21686148-6449-6e6f-744e-656564454649",
        f"  2: EFI-SYSTEM, 256 MiB, type {ESP}",
        f"  3: root, the rest, type {ROOT}, ext4, UUID 2f8a7a1e-0000-4000-8000-000000000001",
    ]


@pytest.mark.skipif(
    shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin") is None, reason="sfdisk"
)
def test_sfdisk_takes_the_script_and_the_table_reads_back(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(2048 * MIB)
    assert blockdev.read_gpt(str(image)) is None
    process.run(["sfdisk", "--quiet", str(image)], stdin=sfdisk_script(_plan()))
    table = blockdev.read_gpt(str(image))
    assert table is not None
    assert [(part.number, part.name, part.type) for part in table] == [
        (part.number, part.name, part.type) for part in _plan().partitions
    ]
    assert [part.size // MIB for part in table[:2]] == [1, 256]
    assert table[0].start == MIB
    assert table[2].start + table[2].size <= 2048 * MIB
    assert blockdev.size_of(str(image)) == 2048 * MIB
    with image.open("r+b") as file:
        file.seek(1024 + 20)
        file.write(b"\xff")
    with pytest.raises(FormatError, match="damaged"):
        blockdev.read_gpt(str(image))


def test_header_damage_is_told(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(512) + b"EFI PART" + bytes(504) + bytes(16384))
    with pytest.raises(FormatError, match="header is damaged"):
        blockdev.read_gpt(str(image))


def test_not_a_block_device(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for device in (str(plain), str(tmp_path / "missing")):
        with pytest.raises(BootcError, match=r"not a block device|No such file"):
            plan_disk(DiskOptions(device=device), RootFilesystem.EXT4, image_size=MIB)


@pytest.mark.parametrize("kind", RootFilesystem)
def test_mkfs(kind: RootFilesystem) -> None:
    argv = mkfs_root_argv(kind, "/dev/vdb3", "UUID-HERE")
    assert argv[0] == f"mkfs.{kind}"
    assert argv[-1] == "/dev/vdb3"
    assert any("UUID-HERE" in word for word in argv)
    assert ("verity" in argv) == (kind is RootFilesystem.EXT4)


MOUNTINFO = (
    "22 1 254:3 / / ro,relatime shared:1 - overlay composefs:abc ro,lowerdir+=/x\n"
    "23 22 254:3 /a\\040b /mnt/c\\134d rw - ext4 /dev/vda3 rw\n"
    "24 22 0:30 / /mnt/c\\134d rw master:2 shared:4 - tmpfs tmpfs rw,mode=755\n"
    "garbage\n"
)


def test_mountinfo(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTINFO)
    mounts = blockdev.read_mounts(str(file))
    root = blockdev.find_mount("/", mounts)
    assert root is not None
    assert (root.source, root.fstype, root.options) == (
        "composefs:abc",
        "overlay",
        ("ro", "relatime"),
    )
    assert mounts[1].root == "/a b"
    top = blockdev.find_mount("/mnt/c\\d", mounts)
    assert top is not None
    assert (top.fstype, top.super_options) == ("tmpfs", ("rw", "mode=755"))
    assert blockdev.find_mount("/nowhere", mounts) is None
