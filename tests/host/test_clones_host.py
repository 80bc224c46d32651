# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Shared extents: what is stored is what was verified, whichever of the two files was read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootc import process
from bootc.composefs.clones import clone_file
from bootc.composefs.copy_image import send_layer
from bootc.composefs.digest import Algorithm
from bootc.composefs.fsck import check_repository
from bootc.composefs.layers import SPOOL
from bootc.composefs.objects import ObjectStore, Route
from bootc.composefs.repository import Repository
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.composefs.stored_layers import read_bytes
from bootc.composefs.writers import Batch, Item, WriterPool
from bootc.linux import filelease
from bootc.tree import Inline, Leaf, Stat
from tests.ocibuild import END, member, sha256
from tests.storagebuild import pulled, store_with
from tests.varlinks import open_fds
from tests.waiting import wait_until

pytestmark = pytest.mark.root
LARGE = b"L" * (SPOOL + 5000)
SMALL = b"s" * 5000


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def reflinks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder on a file system that has them."""
    folder = tmp_path_factory.mktemp("reflinks")
    (folder / "disk").touch()
    os.truncate(folder / "disk", 512 << 20)
    process.run([f"mkfs.{request.param}", "-q", str(folder / "disk")])
    (folder / "m").mkdir()
    process.run(["mount", "-o", "loop", str(folder / "disk"), str(folder / "m")])
    yield folder / "m"
    process.run(["umount", str(folder / "m")])


@pytest.fixture
def repo(reflinks: Path, request: pytest.FixtureRequest) -> Iterator[Repository]:
    name = request.node.name.translate(str.maketrans("[]-", "___"))
    path = reflinks / name
    with Repository.init(path, algorithm=Algorithm.SHA256, secure=False) as made:
        yield made


@pytest.fixture
def store(repo: Repository) -> ObjectStore:
    return repo.writable_objects()


@pytest.fixture
def source(reflinks: Path) -> Iterator[int]:
    """A file that only we may write, open for reading."""
    path = reflinks / "source"
    path.unlink(missing_ok=True)
    path.write_bytes(LARGE)
    path.chmod(0o644)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Reading:
    """Reads what it is told to, and remembers which files that were."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.files: list[int] = []
        self.content = b""
        self._meanwhile = meanwhile

    def __call__(self, fd: int) -> bytes:
        self.files.append(os.fstat(fd).st_ino)
        self.content = os.pread(fd, len(LARGE) + 1, 0)
        if len(self.files) == 1:
            self._meanwhile()
        return b""


def leaf() -> Leaf:
    return Leaf(Stat(), Inline(b""))


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def finished(store: ObjectStore, item: Item) -> bytes:
    """The content of the object that the item became."""
    with WriterPool(store, 1) as pool:
        batch = Batch(items=[item])
        pool.submit(batch)
        batch.done.wait()
        assert batch.error is None
    fd = store.open(item.digest)
    content = os.pread(fd, len(LARGE) + 1, 0)
    os.close(fd)
    return content


def test_of_our_own_file_the_original_is_read(store: ObjectStore, source: int) -> None:
    before = open_fds()
    reading = Reading()
    item = clone_file(store, leaf(), source, len(LARGE), reading)
    assert item is not None
    assert reading.files == [inode(source)]
    assert item.route is Route.REFLINKED
    assert inode(item.twin) == inode(source) != inode(item.fd)
    assert finished(store, item) == LARGE
    assert store.counts().reflinked == 1
    assert open_fds() == before


def test_of_a_file_that_others_may_write_the_clone_is_read(
    store: ObjectStore, source: int, reflinks: Path
) -> None:
    (reflinks / "source").chmod(0o666)
    reading = Reading()
    item = clone_file(store, leaf(), source, len(LARGE), reading)
    assert item is not None
    assert reading.files == [inode(item.fd)]
    assert item.twin == -1
    assert finished(store, item) == LARGE
    (reflinks / "source").chmod(0o644)
    os.chown(reflinks / "source", 12345, 12345)
    item = clone_file(store, leaf(), source, len(LARGE), reading)
    assert item is not None
    assert item.twin == -1
    assert finished(store, item) == LARGE


def test_of_a_file_that_is_open_for_writing_the_clone_is_read(
    store: ObjectStore, source: int, reflinks: Path
) -> None:
    """And what is written meanwhile is neither read nor stored."""
    with open(reflinks / "source", "r+b") as writer:

        def change() -> None:
            writer.write(b"X" * 100)
            writer.flush()

        reading = Reading(change)
        item = clone_file(store, leaf(), source, len(LARGE), reading)
    assert item is not None
    assert reading.files == [inode(item.fd)]
    assert finished(store, item) == reading.content == LARGE


def test_a_writer_who_comes_meanwhile_changes_nothing(
    store: ObjectStore, source: int, reflinks: Path
) -> None:
    """He waits for the lease; then the clone is read, whatever was read of the original."""
    writer = threading.Thread(target=(reflinks / "source").write_bytes, args=(b"changed",))

    def come() -> None:
        writer.start()
        wait_until(lambda: not filelease.holds(source))

    reading = Reading(come)
    item = clone_file(store, leaf(), source, len(LARGE), reading)
    assert item is not None
    assert reading.files == [inode(source), inode(item.fd)]
    assert item.twin == -1
    os.dup2(os.open(os.devnull, os.O_RDONLY), source)
    writer.join()
    assert (reflinks / "source").read_bytes() == b"changed"
    assert finished(store, item) == reading.content == LARGE


def test_a_writer_who_comes_before_the_digest_changes_nothing(
    store: ObjectStore, source: int, reflinks: Path
) -> None:
    item = clone_file(store, leaf(), source, len(LARGE), Reading())
    assert item is not None
    os.dup2(os.open(os.devnull, os.O_RDONLY), source)
    twin = item.twin
    writer = threading.Thread(target=(reflinks / "source").write_bytes, args=(b"changed",))
    writer.start()
    wait_until(lambda: not filelease.holds(twin))
    assert finished(store, item) == LARGE
    writer.join()
    assert (reflinks / "source").read_bytes() == b"changed"


def test_a_layer_is_shared_on_every_way(repo: Repository, reflinks: Path, tmp_path: Path) -> None:
    """From containers-storage, and from there to another repository."""
    tar = member(b"large", LARGE) + member(b"small", SMALL) + END
    folder = Path(repo.path).with_name(Path(repo.path).name + "-store")
    folder.mkdir()
    imgref = store_with(folder, tar).imgref("localhost/image:1")
    pulled(repo, imgref)
    assert repo.counts().reflinked == 2
    target = folder / "target"
    with Repository.init(target, algorithm=Algorithm.SHA512, secure=False) as other:
        received = send_layer(repo, other, sha256(tar))
        assert received.counts.reflinked == 2
        stream = open_stream(other, layer_content_id(sha256(tar)))
        assert b"".join(read_bytes(other, stream)) == tar
        assert check_repository(other, workers=1).findings == ()
    assert check_repository(repo, workers=1).findings == ()
