# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A live configuration folder as a tree that can be compared with an image's.

Contents are fs-verity digests (or bytes, up to 64 of them), as in the trees that EROFS images are
read into, so /etc of an image needs no mount to be compared. Sockets, fifos and devices are left
out: they are made anew by those who use them. No symbolic link is ever followed: every name is
opened in the descriptor of its folder.
"""

from __future__ import annotations

import errno
import os
import stat

from bootc.composefs.digest import Algorithm, digest_fd
from bootc.errors import BootcError
from bootc.tree import INLINE_MAX, Content, Directory, External, Inline, Leaf, Stat, Symlink

DEPTH_MAX = 200
"""Folders below each other; each costs a descriptor while the tree is read."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_live(
    path: str | os.PathLike[str], *, algorithm: Algorithm = Algorithm.SHA512
) -> Directory:
    """The tree below the folder `path`; raises `BootcError` for what can't be read."""
    where = os.fspath(path)
    try:
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BootcError(f"cannot read the folder {where}: {error.strerror}") from error
    try:
        return _Reader(algorithm).directory(fd, where, 0)
    finally:
        os.close(fd)


def read_xattrs(target: int | str) -> dict[bytes, bytes]:
    """The extended attributes of a descriptor, or of the path of a link that isn't followed."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {os.fsencode(name): os.getxattr(target, name, follow_symlinks=follow) for name in names}


class _Reader:
    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._links: dict[tuple[int, int], Leaf] = {}

    def directory(self, fd: int, where: str, depth: int) -> Directory:
        if depth > DEPTH_MAX:
            raise BootcError(f"{where} lies more than {DEPTH_MAX} folders deep")
        found = Directory(_stat(os.fstat(fd), read_xattrs(fd)))
        with os.scandir(fd) as entries:
            names = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        for name, status in names:
            path = f"{where}/{name}"
            try:
                node = self._node(fd, name, status, path, depth)
            except FileNotFoundError:
                continue
            except OSError as error:
                changed = error.errno in (errno.ELOOP, errno.ENOTDIR)
                said = "it changes while it is read" if changed else error.strerror
                raise BootcError(f"cannot read {path}: {said}", hint="try again") from error
            if node is not None:
                found.entries[os.fsencode(name)] = node
        return found

    def _node(
        self, parent: int, name: str, status: os.stat_result, path: str, depth: int
    ) -> Directory | Leaf | None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            fd = os.open(name, _FOLDER, dir_fd=parent)
            try:
                return self.directory(fd, path, depth + 1)
            finally:
                os.close(fd)
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self._links:
            return self._links[key]
        if kind == stat.S_IFREG:
            leaf = self._regular(parent, name)
        elif kind == stat.S_IFLNK:
            xattrs = read_xattrs(f"/proc/self/fd/{parent}/{name}")
            leaf = Leaf(_stat(status, xattrs), Symlink(os.fsencode(_readlink(parent, name))))
        else:
            return None
        if status.st_nlink > 1:
            self._links[key] = leaf
        return leaf

    def _regular(self, parent: int, name: str) -> Leaf:
        fd = os.open(name, _FILE, dir_fd=parent)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            content: Content
            if status.st_size <= INLINE_MAX:
                content = Inline(os.pread(fd, INLINE_MAX, 0))
            else:
                content = External(status.st_size, digest_fd(fd, self._algorithm))
            return Leaf(_stat(status, read_xattrs(fd)), content)
        finally:
            os.close(fd)


def _readlink(parent: int, name: str) -> str:
    return os.readlink(name, dir_fd=parent)


def _stat(found: os.stat_result, xattrs: dict[bytes, bytes]) -> Stat:
    return Stat(
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_mtime_ns // 1_000_000_000,
        found.st_mtime_ns % 1_000_000_000,
        xattrs,
    )
