# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images of a real directory, judged by programs that nobody here wrote: fsck.erofs and Linux."""

import os
import stat as st
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.erofs_format import (
    V2_INLINE_MAX,
    V2_SYMLINK_MAX,
    FormatVersion,
    object_path,
)
from bootc.composefs.erofs_writer import write_image
from bootc.tree import (
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Sparse,
    Special,
    Stat,
    Symlink,
    walk,
)

LABEL = {b"security.selinux": b"system_u:object_r:etc_t:s0\0"}


def leaf(number: int, version: FormatVersion) -> Leaf:
    """One of many leaves, of all kinds and with sizes around every limit."""
    inline, link = (V2_INLINE_MAX, V2_SYMLINK_MAX) if version is FormatVersion.V2 else (5000, 4000)
    contents: list[Content] = [
        Inline(b"i" * (number * 37 % inline)),
        External(number * 1000 + 1, bytes([number % 251]) * 64),
        Sparse(number << 20 | 1),
        Symlink(b"t" * (number * 53 % link + 1)),
        Device(st.S_IFBLK, number),
        Special(st.S_IFIFO),
    ]
    xattrs = {**LABEL, b"trusted.n": b"v" * (number * 7 % 900)} if number % 3 else {}
    stat = Stat(0o640, number, number * 700, number % 4, number % 2, xattrs)
    return Leaf(stat, contents[number % len(contents)])


def sample(version: FormatVersion) -> Directory:
    root = Directory(Stat(0o755, xattrs=dict(LABEL)))
    for number in range(900):
        root.entries[b"entry-%d" % number] = leaf(number, version)
    below = Directory(Stat(0o700), {b"n" * 200 + b"%d" % n: leaf(n, version) for n in range(40)})
    below.entries[b"again"] = root.entries[b"entry-1"]
    root.entries[b"below"] = below
    return root


@contextmanager
def mounted(image: Path, where: Path) -> Iterator[bytes]:
    where.mkdir()
    process.run(["mount", "-t", "erofs", "-o", "loop,ro", str(image), str(where)])
    try:
        yield os.fsencode(where)
    finally:
        process.run(["umount", str(where)])


@pytest.mark.root
@pytest.mark.skipif(process.find_program("fsck.erofs") is None, reason="no fsck.erofs")
@pytest.mark.parametrize("version", list(FormatVersion))
def test_erofs_fsck(tmp_path: Path, version: FormatVersion) -> None:
    path = tmp_path / "image"
    path.write_bytes(write_image(sample(version), version=version))
    process.run(["fsck.erofs", str(path)])


@pytest.mark.root
@pytest.mark.erofs
@pytest.mark.parametrize("version", list(FormatVersion))
def test_erofs_kernel_reads_it(tmp_path: Path, version: FormatVersion) -> None:
    image = tmp_path / "image"
    root = sample(version)
    image.write_bytes(write_image(root, version=version))
    with mounted(image, tmp_path / "mnt") as top:
        for path, node in walk(root):
            full = top + path
            found, stat = os.lstat(full), node.stat
            nanoseconds = 0 if version is FormatVersion.V2 else stat.mtime_nsec
            assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns) == (
                *(stat.mode, stat.uid, stat.gid),
                stat.mtime * 10**9 + nanoseconds,
            )
            if not (isinstance(node, Leaf) and node.kind == st.S_IFLNK):
                names = os.listxattr(full, follow_symlinks=False)
                xattrs = {n.encode(): os.getxattr(full, n, follow_symlinks=False) for n in names}
                assert stat.xattrs.items() <= xattrs.items()
            if isinstance(node, Directory):
                assert set(node.entries) <= set(os.listdir(full))
                continue
            assert st.S_IFMT(found.st_mode) == node.kind
            match node.content:
                case Inline(data=data):
                    assert Path(os.fsdecode(full)).read_bytes() == data
                case External(size=size, digest=digest):
                    assert found.st_size == size
                    assert os.getxattr(full, "trusted.overlay.metacopy")[4:] == digest
                    redirect = os.getxattr(full, "trusted.overlay.redirect")
                    assert redirect == b"/" + object_path(digest)
                case Sparse(size=size):
                    assert found.st_size == size
                case Symlink(target=target):
                    assert os.readlink(full) == target
                case Device(rdev=rdev):
                    assert found.st_rdev == rdev
                case Special():
                    assert found.st_size == 0
        assert os.lstat(top + b"/below/again").st_nlink == 2
