# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A disk after a power cut is taken apart: partitions, journal, ESP, and the flags of fs-verity.

The disk is made of a mock system. Its kernel-less fs-verity is made by hand: the flag of ext4 is
set on the objects, and this kernel, which has none, refuses to open them.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError
from tests.diskbuild import MIB, ROOT_SIZE, ROOT_START, make_disk
from tests.sysroots import ImageContent, MockMachine
from vmtests import cuts
from vmtests.cuts import find_problems, next_deployment, recovered

pytestmark = pytest.mark.root

_SEALED = 0x180000


def seal(disk: Path, machine: MockMachine, leave: Path | None = None) -> None:
    """Set the flag on meta.json and on all objects but one."""
    repository = machine.root / "composefs"
    files = [repository / "meta.json", *(repository / "objects").glob("*/*")]
    script = disk.with_suffix(".debugfs")
    script.write_text(
        "".join(
            f"set_inode_field /{path.relative_to(machine.root)} flags {_SEALED:#x}\n"
            for path in files
            if path != leave
        )
    )
    process.run(["debugfs", "-w", "-f", str(script), f"{disk}?offset={ROOT_START}"], timeout=60)


def kernel_lacks_verity(disk: Path, folder: Path) -> bool:
    """Whether a file with the flag is refused because this kernel has no fs-verity."""
    folder.mkdir()
    options = f"ro,loop,offset={ROOT_START},sizelimit={ROOT_SIZE}"
    process.run(["mount", "-o", options, str(disk), str(folder)], timeout=30)
    try:
        os.close(os.open(folder / "composefs/meta.json", os.O_RDONLY))
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP
    finally:
        process.run(["umount", str(folder)], timeout=30)
    return False


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    made = MockMachine(tmp_path / "machine")
    for version in ("1", "2"):
        content = ImageContent(version, extra={"usr/share/big": version.encode() * 5000})
        made.install(made.image(version, content))
    return made


def test_system_on_a_disk_is_whole_also_with_fs_verity(
    machine: MockMachine, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    make_disk(machine, disk)
    seal(disk, machine)
    with recovered(disk, tmp_path / "files") as found:
        assert found.unsealed == ()
        assert find_problems(found.sysroot) == []
        assert next_deployment(found.sysroot) == machine.sysroot.booted
    assert not os.path.ismount(tmp_path / "files/root")


# It has a mount namespace made, which then keeps what is being unmounted.
_UMOUNT = """#!/bin/sh
if ! [ -e NAMESPACE ]; then
    exec 3> NAMESPACE
    unshare --mount --propagation private sh -c 'echo $$ >&3; exec sleep 60' > /dev/null 2>&1 &
    while ! [ -s NAMESPACE ]; do sleep 0.05; done
fi
exec UMOUNT "$@"
"""


def test_somebody_elses_mount_namespace_keeps_no_old_inodes(
    machine: MockMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, namespace = tmp_path / "disk.raw", tmp_path / "namespace"
    make_disk(machine, disk)
    seal(disk, machine)
    umount = process.need_program("umount", hint="install mount")
    fake = tmp_path / "bin" / "umount"
    fake.parent.mkdir()
    fake.write_text(_UMOUNT.replace("NAMESPACE", str(namespace)).replace("UMOUNT", umount))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    try:
        with recovered(disk, tmp_path / "files") as found:
            assert find_problems(found.sysroot) == []
    finally:
        os.kill(int(namespace.read_text()), signal.SIGKILL)


def test_object_that_lost_its_fs_verity_is_told(machine: MockMachine, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    make_disk(machine, disk)
    objects = machine.root / "composefs/objects"
    bare = next(path for path in objects.glob("*/*") if path.read_bytes() == b"2" * 5000)
    seal(disk, machine, leave=bare)
    name = f"{bare.parent.name}/{bare.name}"
    expected = (name,) if kernel_lacks_verity(disk, tmp_path / "probe") else ()
    with recovered(disk, tmp_path / "files") as found:
        assert found.unsealed == expected


def test_lost_blocks_are_told(machine: MockMachine, tmp_path: Path) -> None:
    """Zeros where the partition table was, then where the root's superblocks were."""
    disk = tmp_path / "disk.raw"
    make_disk(machine, disk)
    with disk.open("r+b") as file:
        file.seek(ROOT_START)
        file.write(bytes(ROOT_SIZE))
    with pytest.raises(BootcError, match="e2fsck"), recovered(disk, tmp_path / "files"):
        pass
    with disk.open("r+b") as file:
        file.write(bytes(MIB))
    with pytest.raises(BootcError, match="no ESP or no root"), recovered(disk, tmp_path / "files"):
        pass


def test_a_repair_that_takes_an_entry_is_told(
    machine: MockMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk.raw"
    make_disk(machine, disk)
    entry = next((machine.esp / "loader/entries").glob("*.conf")).name

    def spoil(image: str) -> None:
        process.run(["mdel", "-i", image, f"::/loader/entries/{entry}"], timeout=30)

    monkeypatch.setattr(cuts, "is_dirty", lambda _: True)
    monkeypatch.setattr(cuts, "repair", spoil)
    with (
        pytest.raises(BootcError, match="a repair makes the menu"),
        recovered(disk, tmp_path / "files"),
    ):
        pass
