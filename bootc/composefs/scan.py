# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A directory of the file system as a tree: everything in it, links, devices and attributes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from bootc.composefs.digest import Algorithm, digest_fd
from bootc.composefs.repository import Repository
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

Keep = Callable[[int, int], bytes]
"""(fd, size) of a regular file to the digest of its content."""


def find_digest(algorithm: Algorithm) -> Keep:
    """Only compute the digests of contents."""
    return lambda fd, size: digest_fd(fd, algorithm)


def store_content(repo: Repository) -> Keep:
    """Store contents in the repository."""

    def keep(fd: int, size: int) -> bytes:
        with os.fdopen(os.dup(fd), "rb") as reader:
            return repo.ensure_object_from(reader, size)

    return keep


def scan_directory(path: str | os.PathLike[str], keep: Keep) -> Directory:
    """Read the tree below `path`. Files with several names there are one leaf.

    Raises `BootcError`, with the path, for what can't be read or changes while it is.
    """
    return _Scan(keep).directory(os.fsencode(path))


class _Scan:
    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._linked: dict[tuple[int, int], Leaf] = {}

    def directory(self, path: bytes) -> Directory:
        try:
            return self._directory(path)
        except OSError as error:
            where = os.fsdecode(error.filename if error.filename is not None else path)
            raise BootcError(f"cannot read {where}: {error.strerror}") from error

    def _directory(self, path: bytes) -> Directory:
        directory = Directory(_stat(path, os.lstat(path)))
        with os.scandir(path) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    directory.entries[entry.name] = self._directory(entry.path)
                else:
                    directory.entries[entry.name] = self._leaf(entry.path, found)
        return directory

    def _leaf(self, path: bytes, found: os.stat_result) -> Leaf:
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and key in self._linked:
            return self._linked[key]
        leaf = Leaf(_stat(path, found), self._content(path, found))
        if found.st_nlink > 1:
            self._linked[key] = leaf
        return leaf

    def _content(self, path: bytes, found: os.stat_result) -> Content:
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            return self._regular(path, found.st_size)
        if kind == stat.S_IFLNK:
            return Symlink(os.readlink(path))
        if kind in (stat.S_IFBLK, stat.S_IFCHR):
            return Device(kind, found.st_rdev)
        return Special(kind)

    def _regular(self, path: bytes, size: int) -> Inline | External:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if size > INLINE_MAX:
                return External(size, self._keep(fd, size))
            data = os.read(fd, INLINE_MAX + 1)
        finally:
            os.close(fd)
        if len(data) != size:
            raise BootcError(f"{os.fsdecode(path)} changes while it is read")
        return Inline(data)


def _stat(path: bytes, found: os.stat_result) -> Stat:
    names = os.listxattr(path, follow_symlinks=False)
    return Stat(
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns // 1_000_000_000,
        found.st_mtime_ns % 1_000_000_000,
        {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names},
    )
