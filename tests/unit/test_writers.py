# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Batches of contents on their way into a store where the kernel computes no digests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.composefs.clones import clone_file
from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.hashing import LARGE
from bootc.composefs.objects import ObjectStore, Route, object_path
from bootc.composefs.writers import Batch, Item, WriterPool
from bootc.tree import External, Inline, Leaf, Stat
from tests.varlinks import open_fds


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    folder = tmp_path / "objects"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    store = ObjectStore(fd, str(folder), Algorithm.SHA256, secure=False)
    monkeypatch.setattr(store, "_probe", lambda: False)
    store.prepare()
    yield store
    store.close()
    os.close(fd)


def small(data: bytes) -> Item:
    return Item(Leaf(Stat(), Inline(b"")), len(data), data)


def large(store: ObjectStore, data: bytes) -> Item:
    fd = store.create()
    os.write(fd, data)
    return Item(Leaf(Stat(), Inline(b"")), len(data), fd=fd)


def digest(data: bytes) -> bytes:
    return digest_bytes(data, Algorithm.SHA256)


def test_small_and_large_contents_are_stored(store: ObjectStore) -> None:
    contents = [os.urandom(size) for size in (1, 5000, LARGE - 1, LARGE, LARGE + 1)]
    before = open_fds()
    with WriterPool(store) as pool:
        batches = [
            Batch(items=[small(contents[0]), small(contents[1])]),
            Batch(items=[small(contents[2]), large(store, contents[3])]),
            Batch(items=[small(contents[1]), large(store, contents[4])]),
        ]
        leaves = [[item.leaf for item in batch.items] for batch in batches]
        for batch in batches:
            pool.submit(batch)
        for batch in reversed(batches):
            pool.finish(batch)
            assert pool.is_ready(batch)
    for data in contents:
        path = Path(store.path, object_path(digest(data)))
        assert path.read_bytes() == data
    assert leaves[1][1].content == External(LARGE, digest(contents[3]))
    assert leaves[2][0].content == External(5000, digest(contents[1]))
    assert (store.counts().written, store.counts().existing) == (5, 1)
    assert open_fds() == before


def test_what_the_kernel_measured_elsewhere_is_believed(store: ObjectStore) -> None:
    """So a sealed file's content isn't hashed once more, whichever items are beside it."""
    sealed, plain = os.urandom(6000), [os.urandom(5000), os.urandom(7000)]
    items = [small(plain[0]), small(sealed), small(plain[1])]
    items[1].measured = digest(b"something else")
    with WriterPool(store) as pool:
        batch = Batch(items=items)
        pool.submit(batch)
        pool.finish(batch)
    found = [item.digest for item in items]
    assert found == [digest(plain[0]), digest(b"something else"), digest(plain[1])]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_failure_is_told_to_who_waits_for_the_batch(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    def fail(given: int | bytes, *_: object, **__: object) -> bytes:
        if isinstance(given, int):
            os.close(given)
        raise OSError(28, "No space left on device")

    before = open_fds()
    monkeypatch.setattr(store, "adopt" if is_large else "store", fail)
    data = os.urandom(5000)
    with WriterPool(store) as pool:
        item = large(store, data) if is_large else small(data)
        batch = Batch(items=[item, large(store, data)])
        other = Batch(items=[Item(Leaf(Stat(), Inline(b"")), 9, digest=digest(b"here"))])
        pool.submit(batch)
        pool.submit(other)
        with pytest.raises(OSError, match="No space left"):
            pool.finish(batch)
        pool.finish(other)
    assert open_fds() == before


def test_what_was_not_finished_is_given_up(store: ObjectStore) -> None:
    before = open_fds()
    data = os.urandom(5000)
    clone = small(data)
    clone.fd, clone.route = store.create(), Route.REFLINKED

    def fail() -> None:
        with WriterPool(store) as pool:
            pool.submit(Batch(items=[small(data), clone]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert open_fds() == before
    assert not any(Path(store.path).glob("??/*"))


def test_a_file_whose_extents_cannot_be_shared_may_be_written_to_at_once(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when a lease on it runs out, after 45 seconds."""
    monkeypatch.setattr(store, "clone", lambda _: None)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    fd = os.open(path, os.O_RDONLY)
    leaf = Leaf(Stat(), Inline(b""))
    assert clone_file(store, leaf, fd, 5000, lambda _: pytest.fail("nothing is read")) is None
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # EWOULDBLOCK, if there were one
    os.close(fd)
