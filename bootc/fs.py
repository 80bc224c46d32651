# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Durable files: what a function here has written is on the disk when it returns.

A file is written under a temporary name, synced, renamed over the old one, and its directory is
synced; so after a power cut there is the old or the new content, never a part. Where a directory
file descriptor is taken, names are relative to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bootc.linux import libc

_ALNUM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

Path = str | os.PathLike[str]


def temporary_name(prefix: str) -> str:
    """`prefix` and 12 random letters and digits."""
    # `secrets` would cost more than all else that a small command imports from the library.
    return prefix + "".join([_ALNUM[byte % len(_ALNUM)] for byte in os.urandom(12)])


@contextmanager
def open_directory(path: Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """A directory's file descriptor, as long as the block runs."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_directory(path: Path, *, dir_fd: int | None = None) -> None:
    """Make the names in a directory durable."""
    with open_directory(path, dir_fd=dir_fd) as fd:
        os.fsync(fd)


def sync_filesystem(path: Path) -> None:
    """Make all that was written to the file system of the directory `path` durable.

    syncfs(2) of vfat writes everything, but doesn't tell the disk to flush its cache; fsync(2) of a
    directory does (fat_file_fsync, since Linux 5.3). And fsync alone isn't enough there: the entry
    of a renamed file gets its first cluster when the file's inode is written, not the directory's.
    """
    with open_directory(path) as fd:
        libc.syncfs(fd)
        os.fsync(fd)


@contextmanager
def _kept(path: Path, *, dir_fd: int | None = None) -> Iterator[None]:
    """Keep what is at `path`, if anything is, in use for as long as the block runs.

    Its blocks become free afterwards. vfat has no journal: when they are free on the disk before
    the name is gone there, a power cut leaves a name that leads to nothing.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        yield
        return
    try:
        yield
    finally:
        os.close(fd)


def put_in_place(fd: int, temporary: str, path: str, *, dir_fd: int | None = None) -> None:
    """Rename the file `temporary`, which is open as `fd` and has the same folder, to `path`.

    Durably, and so that at any moment `path` has its old content or the new, also on vfat.
    """
    with _kept(path, dir_fd=dir_fd):
        os.fsync(fd)
        os.rename(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        # On vfat the new name leads to the content once the file is written again.
        os.fsync(fd)
        sync_directory(os.path.dirname(path) or ".", dir_fd=dir_fd)


def remove_file(path: Path) -> None:
    """Unlink a file, durably: its name goes before its content does, also on vfat."""
    with _kept(path):
        os.unlink(path)
        sync_directory(os.path.dirname(path) or ".")


def remove_tree(path: Path) -> None:
    """Remove a small folder, durably: its name goes before its content does, also on vfat.

    There must be no mounts in it; each of its files takes a file descriptor for the moment.
    """
    with contextlib.ExitStack() as stack:
        for folder, _, names in os.walk(path, topdown=False, onerror=_fail):
            for name in names:
                stack.enter_context(_kept(os.path.join(folder, name)))
                os.unlink(os.path.join(folder, name))
            stack.enter_context(_kept(folder))
            os.rmdir(folder)
        sync_directory(os.path.dirname(path) or ".")


def _fail(error: OSError) -> None:
    raise error


def lacks_tmpfile(error: OSError) -> bool:
    """Whether opening with O_TMPFILE failed because this file system or kernel has none."""
    # A kernel that doesn't know the flag sees O_DIRECTORY in it, and a directory is not writable.
    return error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until all of `data` is written."""
    done = os.write(fd, data)
    if done == len(data):
        return
    view = memoryview(data)
    while done < len(view):
        done += os.write(fd, view[done:])


def write_atomic(
    path: Path, data: bytes | str, *, mode: int = 0o644, dir_fd: int | None = None
) -> None:
    """Create or replace the file `path` in one step, durably; `mode` is exact, whatever the umask.

    The file's directory must exist. On a failure the old file is untouched and nothing is left.
    """
    content = data.encode() if isinstance(data, str) else data
    folder, name = os.path.split(os.fspath(path))
    with open_directory(folder or ".", dir_fd=dir_fd) as parent:
        temporary = temporary_name(f".{name}.")
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        try:
            try:
                write_all(fd, content)
                os.fchmod(fd, mode)
                put_in_place(fd, temporary, name, dir_fd=parent)
            finally:
                os.close(fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            raise


def replace_symlink(target: str, path: str, *, dir_fd: int, prefix: str = ".symlink-") -> bool:
    """Make `path` a symlink to `target`, replacing another one in one step; False if it was so.

    The temporary name lies in `dir_fd` itself. The link's directory is synced when it changed.
    """
    try:
        os.symlink(target, path, dir_fd=dir_fd)
    except FileExistsError:
        if os.readlink(path, dir_fd=dir_fd) == target:
            return False
        temporary = temporary_name(prefix)
        os.symlink(target, temporary, dir_fd=dir_fd)
        try:
            os.rename(temporary, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            os.unlink(temporary, dir_fd=dir_fd)
            raise
    sync_directory(os.path.dirname(path) or ".", dir_fd=dir_fd)
    return True
