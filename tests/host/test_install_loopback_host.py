# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`install to-disk --via-loopback`: a file is the disk. Needs root and loop devices."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bootc import process
from tests.ocibuild import END, folder, member, write_layout

pytestmark = pytest.mark.root
TOP = Path(__file__).resolve().parents[2]
KERNEL = b"usr/lib/modules/6.12"
MADE = 3 << 30


@pytest.fixture
def layout(tmp_path: Path) -> str:
    where = tmp_path / "layout"
    where.mkdir()
    names = (b"./", b"usr/", b"usr/lib/", b"usr/lib/modules/", KERNEL + b"/", b"boot/", b"sysroot/")
    tar = b"".join(map(folder, names)) + member(KERNEL + b"/vmlinuz", b"kernel")
    return write_layout(where, [tar + member(KERNEL + b"/initramfs.img", b"ird") + END], tag="1")


def install(layout: str, folder: Path, file: Path, *more: str) -> process.Completed:
    """Run the command with a bootctl that only tells its version."""
    bootctl = folder / "bin/bootctl"
    bootctl.parent.mkdir(exist_ok=True)
    bootctl.write_text("#!/bin/sh\necho 'systemd 257 (257.9)'\n")
    bootctl.chmod(0o755)
    argv = [sys.executable, "-m", "bootc.cli.main", "install", "to-disk", "--composefs-backend"]
    argv += ["--source-imgref", layout, "--filesystem", "ext4", "--via-loopback", str(file), *more]
    env = {"PATH": f"{bootctl.parent}:{os.environ['PATH']}", "PYTHONPATH": str(TOP)}
    return process.run(argv, env=env, check=False)


def loops(file: Path) -> list[str]:
    text = process.run(["losetup", "--json", "--associated", str(file)]).stdout
    return [one["name"] for one in json.loads(text)["loopdevices"]] if text else []


def test_a_file_is_planned_as_a_disk(tmp_path: Path, layout: str) -> None:
    file = tmp_path / "disk.img"
    with file.open("wb") as disk:
        disk.truncate(MADE)
    done = install(layout, tmp_path, file, "--dry-run")
    assert done.status == 0, done.stderr
    assert "disk /dev/loop" in done.stdout
    assert "(3.0 GiB)" in done.stdout
    assert loops(file) == []
    assert file.stat().st_blocks == 0


def test_a_file_gets_partitions(tmp_path: Path, layout: str) -> None:
    """How far it comes depends on this machine's kernel: it may have no vfat."""
    file = tmp_path / "disk.img"
    with file.open("wb") as disk:
        disk.truncate(MADE)
    done = install(layout, tmp_path, file)
    assert f"{file} is /dev/loop" in done.stderr
    table = json.loads(process.run(["sfdisk", "--json", str(file)]).stdout)["partitiontable"]
    names = [part["name"] for part in table["partitions"]]
    assert names == ["BIOS-BOOT", "EFI-SYSTEM", "root"]
    assert loops(file) == []
    again = install(layout, tmp_path, file)
    assert "has 3 partitions" in again.stderr
    assert loops(file) == []


@pytest.mark.parametrize(
    ("make", "said", "hint"),
    [
        ("", "cannot be used as a disk: No such file", "truncate -s"),
        ("mkdir", "cannot be used as a disk: Is a directory", "truncate -s"),
        ("mkfifo", "is not a file", "leave out --via-loopback"),
    ],
)
def test_what_is_no_file_is_refused(
    tmp_path: Path, layout: str, make: str, said: str, hint: str
) -> None:
    file = tmp_path / "disk.img"
    if make:
        process.run([make, str(file)])
    done = install(layout, tmp_path, file)
    assert done.status == 1
    assert said in done.stderr
    assert hint in done.stderr
