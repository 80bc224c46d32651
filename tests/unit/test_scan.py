# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Directories as trees: what is taken of them, in one process and in several."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bootc.composefs.cli import mkcomposefs
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.digest_store import DigestStore
from bootc.composefs.scan import (
    Keep,
    ScanOptions,
    Xattrs,
    find_digest,
    scan_directory,
    store_files,
)
from bootc.composefs.workers import Workers
from bootc.errors import BootcError
from bootc.tree import Directory, External, Inline, Leaf, Special, Symlink

BIG = b"0123456789" * 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one of everything that needs no privileges."""
    root = tmp_path / "root"
    (root / "dir" / "empty").mkdir(parents=True)
    (root / "small").write_bytes(b"x" * 64)
    (root / "big").write_bytes(BIG)
    (root / "huge").write_bytes(BIG * 60_000)
    (root / "none").touch()
    (root / "dir" / "again").hardlink_to(root / "big")
    (root / "dir" / "link").symlink_to("../big")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(root / "socket"))
    os.mkdir(os.fsencode(root) + b"/\xff\n")
    os.utime(root / "none", ns=(0, -1_500_000_000))
    (root / "small").chmod(0o4711)
    return root


def leaf(root: Directory, name: bytes | str) -> Leaf:
    found = root.find(name)
    assert isinstance(found, Leaf)
    return found


def keep(processes: int) -> Keep:
    return find_digest(Algorithm.SHA256, processes=processes)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_scan_everything(folder: Path, processes: int) -> None:
    root = scan_directory(folder, keep(processes))
    names = [b"big", b"dir", b"fifo", b"huge", b"none", b"small", b"socket", b"\xff\n"]
    assert sorted(root.entries) == sorted(names)
    digest = digest_bytes(BIG, Algorithm.SHA256)
    assert leaf(root, "big").content == External(100, digest)
    assert leaf(root, "dir/again") is leaf(root, "big")
    huge = digest_bytes(BIG * 60_000, Algorithm.SHA256)
    assert leaf(root, "huge").content == External(6_000_000, huge)
    assert leaf(root, "small").content == Inline(b"x" * 64)
    assert leaf(root, "small").stat.mode == 0o4711
    assert leaf(root, "none").content == Inline(b"")
    assert (leaf(root, "none").stat.mtime, leaf(root, "none").stat.mtime_nsec) == (-2, 500_000_000)
    assert leaf(root, "dir/link").content == Symlink(b"../big")
    assert isinstance(leaf(root, "fifo").content, Special)
    assert leaf(root, "socket").stat.uid == os.getuid()


@pytest.mark.parametrize("processes", [1, 2])
def test_scan_shows_the_tree_before_the_digests(folder: Path, processes: int) -> None:
    seen: list[tuple[Directory, object]] = []
    root = scan_directory(
        folder,
        keep(processes),
        meanwhile=lambda root: seen.append((root, leaf(root, "big").content)),
    )
    assert seen == [(root, External(100, None))]
    assert leaf(root, "big").content == External(100, digest_bytes(BIG, Algorithm.SHA256))


def test_scan_less(folder: Path) -> None:
    try:
        os.setxattr(folder / "big", "user.a", b"1")
    except OSError as error:
        pytest.skip(f"no attributes here: {error}")
    whole = leaf(scan_directory(folder, keep(1)), "big").stat.xattrs
    assert whole[b"user.a"] == b"1"
    options = ScanOptions(xattrs=Xattrs.NONE, times=False, links=False)
    root = scan_directory(folder, keep(1), options)
    first, second = leaf(root, "big"), leaf(root, "dir/again")
    assert first is not second
    assert first.content == second.content
    assert first.stat.xattrs == {}
    assert (first.stat.mtime, first.stat.mtime_nsec) == (0, 0)
    user = scan_directory(folder, keep(1), ScanOptions(xattrs=Xattrs.USER))
    assert leaf(user, "big").stat.xattrs == {b"user.a": b"1"}


@pytest.mark.parametrize("processes", [1, 3])
def test_scan_of_many_files(tmp_path: Path, processes: int) -> None:
    expected = {}
    for number in range(2000):
        data = b"%d" % number * 40
        (tmp_path / str(number)).write_bytes(data)
        expected[b"%d" % number] = digest_bytes(data, Algorithm.SHA256)
    root = scan_directory(tmp_path, keep(processes))
    found = {name: getattr(node, "content", None) for name, node in root.entries.items()}
    for name, digest in expected.items():
        content = found[name]
        if len(name) * 40 > 64:
            assert isinstance(content, External)
            assert content.digest == digest


def test_scan_says_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(BootcError, match=r"cannot read .*/nothing: No such file"):
        scan_directory(tmp_path / "nothing", keep(2))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_changes(tmp_path: Path, processes: int) -> None:
    (tmp_path / "file").write_bytes(BIG)
    with find_digest(Algorithm.SHA256, processes=processes)() as keeper:
        keeper.submit(os.fsencode(tmp_path / "file"), 99)
        with pytest.raises(BootcError, match=r"/file changes while it is read"):
            list(keeper.finish())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_is_gone(tmp_path: Path, processes: int) -> None:
    with find_digest(Algorithm.SHA256, processes=processes)() as keeper:
        keeper.submit(os.fsencode(tmp_path / "file"), 99)
        with pytest.raises((BootcError, OSError), match=r"No such file.*/file"):
            list(keeper.finish())


def test_workers_that_end_early() -> None:
    def work(path: bytes, size: int) -> bytes:
        os._exit(9) if os.getpid() != parent else None
        return b"x"

    parent = os.getpid()
    with Workers(work, 1, processes=2) as workers:
        for number in range(1000):
            workers.submit(b"%d" % number, 4 << 20)
        with pytest.raises(BootcError, match="ended too early"):
            list(workers.finish())


def test_workers_leave_no_process() -> None:
    with pytest.raises(BootcError, match="stop"), Workers(lambda *_: b"", 0, processes=4):
        raise BootcError("stop")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("processes", [1, 3])
def test_digest_store(folder: Path, tmp_path: Path, processes: int) -> None:
    store = tmp_path / "new" / "store"
    for _ in range(2):
        root = scan_directory(folder, store_files(str(store), processes=processes))
        digests = [
            content.digest
            for name in ("big", "huge")
            if (isinstance(content := leaf(root, name).content, External))
        ]
        names = {digest.hex() for digest in digests if digest is not None}
        files = [path for path in store.rglob("*") if path.is_file()]
        assert {path.parent.name + path.name for path in files} == names
        assert {len(path.parent.name) for path in files} == {2}
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in files)
        assert sorted(path.stat().st_size for path in files) == [100, 6_000_000]


def test_digest_store_keeps_what_it_has(folder: Path, tmp_path: Path) -> None:
    path = os.fsencode(folder / "big")
    name = digest_bytes(BIG, Algorithm.SHA256).hex()
    store = DigestStore(str(tmp_path / "store"))
    assert store.keep(path, 100)[-1:] == b"\1"
    stored = tmp_path / "store" / name[:2] / name[2:]
    inode = stored.stat().st_ino
    assert DigestStore(str(tmp_path / "store")).keep(path, 100)[-1:] == b"\0"
    assert stored.stat().st_ino == inode
    with pytest.raises(BootcError, match="is not a directory"):
        DigestStore(str(stored))


def test_digest_store_without_unnamed_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What such a file system answers to O_TMPFILE: older kernels see O_DIRECTORY | O_RDWR.
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    DigestStore(str(tmp_path / "store")).keep(os.fsencode(folder / "big"), 100)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [BIG]


def test_mkcomposefs_of_a_directory(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--use-epoch", "--skip-xattrs", "--threads=2", str(folder)]
    assert mkcomposefs.main(["--print-digest-only", *argv]) == 0
    first = capsys.readouterr().out
    store = f"--digest-store={tmp_path / 'store'}"
    assert mkcomposefs.main([store, "--print-digest", *argv, str(tmp_path / "image")]) == 0
    assert capsys.readouterr().out == first
    image = (tmp_path / "image").read_bytes()
    assert first == digest_bytes(image, Algorithm.SHA256).hex() + "\n"


def test_mkcomposefs_reports_an_unreadable_store(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        argv = [f"--digest-store={tmp_path / name}", str(folder), str(tmp_path / "image")]
        assert mkcomposefs.main(argv) == 1
        assert "ot a directory" in capsys.readouterr().err
    assert not (tmp_path / "image").exists()
