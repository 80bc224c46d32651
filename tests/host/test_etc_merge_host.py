# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What only root can give a file, and the merge of /etc has to carry over: owners, attributes."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from bootc.deploy.etc_merge import apply_merge, plan_merge
from bootc.deploy.etc_tree import read_live
from bootc.tree import Directory, Leaf

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
DEFAULT_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in ((1, 7), (4, 7), (0x20, 0))
)

pytestmark = pytest.mark.root


def make(top: Path) -> None:
    (top / "program").write_bytes(b"#!" * 50)
    os.chown(top / "program", 12, 34)
    (top / "program").chmod(0o6755)
    os.setxattr(top / "program", "security.capability", CAPABILITY)
    os.setxattr(top / "program", "trusted.mark", b"\0\xff")
    (top / "folder").mkdir()
    os.chown(top / "folder", 56, 78)
    (top / "folder").chmod(0o2770)
    os.setxattr(top / "folder", "user.mark", b"folder")
    (top / "link").symlink_to("nowhere")
    os.chown(top / "link", 90, 91, follow_symlinks=False)
    os.setxattr(top / "link", "trusted.mark", b"link", follow_symlinks=False)
    (top / "folder" / "plain").write_text("plain")
    os.utime(top / "folder" / "plain", ns=(1_000_000_001, 2_000_000_002))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    current, new = tmp_path / "current", tmp_path / "new"
    current.mkdir()
    new.mkdir()
    make(current)
    return current, new


def test_owners_modes_and_attributes_are_carried_over(folders: tuple[Path, Path]) -> None:
    current, new = folders
    empty = read_live(new)
    apply_merge(plan_merge(empty, read_live(current), empty), current, new)
    assert plan_merge(read_live(current), read_live(new)).is_empty
    status = (new / "program").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o6755)
    assert os.getxattr(new / "program", "security.capability") == CAPABILITY
    assert os.getxattr(new / "link", "trusted.mark", follow_symlinks=False) == b"link"
    assert os.lstat(new / "link").st_uid == 90
    assert (new / "folder" / "plain").stat().st_mtime_ns == 2_000_000_002


def test_each_of_them_is_a_modification(folders: tuple[Path, Path]) -> None:
    current, _ = folders
    before = read_live(current)
    os.setxattr(current / "program", "trusted.mark", b"changed")
    os.chown(current / "link", 1, 1, follow_symlinks=False)
    os.removexattr(current / "folder", "user.mark")
    assert plan_merge(before, read_live(current)).modified == ("folder", "link", "program")


def test_what_a_folder_would_give_its_files_is_not_added(folders: tuple[Path, Path]) -> None:
    current, new = folders
    empty: Directory = read_live(new)
    # Everything that is made in `new` from now on inherits an ACL.
    os.setxattr(new, "system.posix_acl_default", DEFAULT_ACL)
    apply_merge(plan_merge(empty, read_live(current), empty), current, new)
    merged = read_live(new)
    assert plan_merge(read_live(current), merged).is_empty
    leaf = merged.find("folder/plain")
    assert isinstance(leaf, Leaf)
    assert leaf.stat.xattrs == {}
    folder = merged.find_directory("folder")
    assert folder is not None
    assert set(folder.stat.xattrs) == {b"user.mark"}
