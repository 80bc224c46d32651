# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A directory of the file system as a tree: everything in it, links, devices and attributes.

What happens to the contents of regular files that are too large for the image is up to a `Keep`:
it is given these files while they are found and says their digests in the end.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from bootc.composefs.collector import paused_collector
from bootc.composefs.digest import Algorithm
from bootc.composefs.digest_store import READ, WIDTH, DigestStore, FileDigester, changed
from bootc.composefs.workers import Workers
from bootc.errors import BootcError
from bootc.tree import (
    INLINE_MAX,
    Content,
    Device,
    Directory,
    External,
    Inline,
    Leaf,
    Special,
    Stat,
    Symlink,
)

if TYPE_CHECKING:
    from bootc.composefs.repository import Repository

_SECOND = 1_000_000_000


class Keeper(Protocol):
    """Takes files, and has their digests, in the same order, when it has got all of them."""

    def submit(self, path: bytes, size: int) -> None: ...

    def finish(self) -> Iterable[bytes]: ...


Keep = Callable[[], AbstractContextManager[Keeper]]


class Xattrs(StrEnum):
    """Which extended attributes are taken."""

    ALL = "all"
    USER = "user"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What of a directory is taken. `links`: files with several names there are one leaf."""

    xattrs: Xattrs = Xattrs.ALL
    devices: bool = True
    times: bool = True
    links: bool = True


DEFAULTS = ScanOptions()


def find_digest(algorithm: Algorithm, *, processes: int | None = None) -> Keep:
    """Only compute the digests of contents, in this many processes (default: all processors)."""

    digester = FileDigester(algorithm)
    return lambda: Workers(digester.digest, algorithm.size, processes=processes)


def store_content(repo: Repository) -> Keep:
    """Store contents in the repository."""

    @contextlib.contextmanager
    def keeper() -> Iterator[Keeper]:
        yield _InRepository(repo)

    return keeper


class _InRepository:
    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._digests: list[bytes] = []

    def submit(self, path: bytes, size: int) -> None:
        with os.fdopen(os.open(path, READ), "rb") as reader:
            self._digests.append(self._repo.ensure_object_from(reader, size))

    def finish(self) -> Iterable[bytes]:
        return self._digests


def store_files(path: str, *, processes: int | None = None) -> Keep:
    """Store contents in the digest store `path`."""

    @contextlib.contextmanager
    def keeper() -> Iterator[Keeper]:
        store = DigestStore(path)
        try:
            with Workers(store.keep, WIDTH, processes=processes) as workers:
                yield _InStore(store, workers)
        finally:
            store.close()

    return keeper


class _InStore:
    def __init__(self, store: DigestStore, workers: Workers) -> None:
        self._store = store
        self.submit = workers.submit
        self._workers = workers

    def finish(self) -> Iterable[bytes]:
        results = list(self._workers.finish())
        if any(result[-1] for result in results):
            self._store.sync()
        return [result[:-1] for result in results]


def scan_directory(
    path: str | os.PathLike[str],
    keep: Keep,
    options: ScanOptions = DEFAULTS,
    *,
    meanwhile: Callable[[Directory], None] | None = None,
) -> Directory:
    """Read the tree below `path`.

    `meanwhile` is called with a tree that only lacks the digests (`External.digest` is None), while
    processes compute these. Raises `BootcError`, with the path, for what can't be read or changes
    while it is.
    """
    with keep() as keeper, paused_collector():
        scan = _Scan(keeper, options)
        root = scan.scan(os.fsencode(path))
        if meanwhile is not None:
            meanwhile(root)
        scan.finish()
    return root


class _Scan:
    def __init__(self, keeper: Keeper, options: ScanOptions) -> None:
        self._keeper = keeper
        self._options = options
        self._linked: dict[tuple[int, int], Leaf] = {}
        self._again: list[tuple[Leaf, Leaf]] = []
        self._waiting: list[tuple[Leaf, int]] = []

    def scan(self, path: bytes) -> Directory:
        """The tree, whose large contents have no digests yet."""
        where = path
        try:
            root = Directory(self._stat(path, os.lstat(path)))
            pending = [(path, root)]
            while pending:
                where, directory = pending.pop()
                pending += self._fill(where, directory)
        except OSError as error:
            name = os.fsdecode(error.filename if error.filename is not None else where)
            raise BootcError(f"cannot read {name}: {error.strerror}") from error
        return root

    def finish(self) -> None:
        """Give the contents their digests."""
        digests = self._keeper.finish()
        for (leaf, size), digest in zip(self._waiting, digests, strict=True):
            leaf.content = External(size, digest)
        for leaf, first in self._again:
            leaf.content = first.content

    def _fill(self, path: bytes, directory: Directory) -> list[tuple[bytes, Directory]]:
        """Read what lies in `path`; the directories are still to be filled."""
        below: list[tuple[bytes, Directory]] = []
        entries = directory.entries
        devices = self._options.devices
        with os.scandir(path) as found:
            for entry in found:
                info = entry.stat(follow_symlinks=False)
                mode = info.st_mode
                if stat.S_ISDIR(mode):
                    made = Directory(self._stat(entry.path, info))
                    entries[entry.name] = made
                    below.append((entry.path, made))
                elif devices or not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
                    entries[entry.name] = self._leaf(entry.path, info)
        return below

    def _leaf(self, path: bytes, info: os.stat_result) -> Leaf:
        if info.st_nlink == 1:
            return self._new_leaf(path, info)
        key = info.st_dev, info.st_ino
        first = self._linked.get(key)
        if first is None:
            first = self._linked[key] = self._new_leaf(path, info)
            return first
        if self._options.links:
            return first
        leaf = Leaf(first.stat, first.content)
        self._again.append((leaf, first))
        return leaf

    def _new_leaf(self, path: bytes, info: os.stat_result) -> Leaf:
        kind = stat.S_IFMT(info.st_mode)
        size = info.st_size
        if kind == stat.S_IFREG and size > INLINE_MAX:
            leaf = Leaf(self._stat(path, info), External(size, None))
            self._waiting.append((leaf, size))
            self._keeper.submit(path, size)
            return leaf
        return Leaf(self._stat(path, info), _small_content(path, kind, info))

    def _stat(self, path: bytes, info: os.stat_result) -> Stat:
        seconds = nanoseconds = 0
        if self._options.times:
            seconds, nanoseconds = divmod(info.st_mtime_ns, _SECOND)
        xattrs: dict[bytes, bytes] = {}
        if self._options.xattrs is not Xattrs.NONE:
            for name in os.listxattr(path, follow_symlinks=False):
                if self._options.xattrs is Xattrs.ALL or name.startswith("user."):
                    xattrs[os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
        return Stat(info.st_mode & 0o7777, info.st_uid, info.st_gid, seconds, nanoseconds, xattrs)


_EMPTY = Inline(b"")


def _small_content(path: bytes, kind: int, info: os.stat_result) -> Content:
    """The content of anything that lies in the image."""
    if kind == stat.S_IFREG:
        if not info.st_size:
            return _EMPTY
        fd = os.open(path, READ)
        try:
            data = os.read(fd, INLINE_MAX + 1)
        finally:
            os.close(fd)
        if len(data) != info.st_size:
            raise changed(path)
        return Inline(data)
    if kind == stat.S_IFLNK:
        return Symlink(os.readlink(path))
    if kind in (stat.S_IFBLK, stat.S_IFCHR):
        return Device(kind, info.st_rdev)
    return Special(kind)
