# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a writer does to mounts is seen by nobody else, and is gone afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc import process
from bootc.deploy import sysroot
from bootc.errors import BootcError
from bootc.linux import blockdev, libc, mount, namespaces
from bootc.linux.loop import open_loop

pytestmark = pytest.mark.root


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[blockdev.Mounted]:
    """A folder that is mounted read-only, as /sysroot is."""
    folder = tmp_path / "sysroot"
    folder.mkdir()
    libc.mount(str(folder), str(folder), None, mount.MS_BIND)
    flags = mount.MS_BIND | mount.MS_REMOUNT | mount.MS_RDONLY
    libc.mount(None, str(folder), None, flags)
    found = blockdev.find_mount(str(folder))
    assert found is not None
    yield found
    libc.umount2(str(folder))


def test_a_writer_has_a_namespace_of_its_own(read_only: blockdev.Mounted, tmp_path: Path) -> None:
    target = Path(read_only.target)
    folder = os.getcwd()
    before = blockdev.read_mounts()
    namespace = os.readlink("/proc/self/ns/mnt")
    with namespaces.own_mounts():
        assert os.readlink("/proc/self/ns/mnt") != namespace
        sysroot._make_writable(read_only, read_only.device)
        (target / "written").write_text("x")
        with mount.mounted("tmpfs", str(tmp_path), "tmpfs"):
            (tmp_path / "hidden").write_text("x")
        libc.mount("tmpfs", str(tmp_path), "tmpfs", 0)
    assert os.readlink("/proc/self/ns/mnt") == namespace
    assert os.getcwd() == folder
    assert blockdev.read_mounts() == before
    assert (target / "written").read_text() == "x"
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "again").write_text("x")


def test_the_namespace_ends_with_an_error(read_only: blockdev.Mounted) -> None:
    namespace = os.readlink("/proc/self/ns/mnt")
    with pytest.raises(KeyboardInterrupt), namespaces.own_mounts():
        raise KeyboardInterrupt
    assert os.readlink("/proc/self/ns/mnt") == namespace


_IN_A_CHROOT = """
import os, sys
from bootc.linux import libc, mount, namespaces
mount.isolate_mounts()
root = sys.argv[1]
libc.mount(root, root, None, mount.MS_BIND)
libc.mount("proc", root + "/proc", "proc", 0)
os.chroot(root)
os.chdir("/folder")
with namespaces.own_mounts():
    libc.mount("tmpfs", "/folder", "tmpfs", 0)
print(os.getcwd(), *sorted(os.listdir("/")), *os.listdir("/folder"))
"""


def test_a_chroot_is_come_back_to(tmp_path: Path) -> None:
    """An installer runs bootc in the root that it has just made."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    done = process.run([sys.executable, "-c", _IN_A_CHROOT, str(tmp_path)])
    assert done.stdout.split() == ["/folder", "folder", "proc", "file"]


def test_a_read_only_device_is_refused_by_name(read_only: blockdev.Mounted, tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    fd = os.open(file, os.O_RDONLY)
    try:
        with open_loop(fd) as device:
            number = blockdev.device_number(os.stat(device).st_rdev)
            if not blockdev.is_readonly(number):
                pytest.fail(f"{device} of a descriptor for reading takes writes")
            with (
                pytest.raises(BootcError, match="which is a read-only device"),
                namespaces.own_mounts(),
            ):
                sysroot._make_writable(read_only, number)
    finally:
        os.close(fd)
