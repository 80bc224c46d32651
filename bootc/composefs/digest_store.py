# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The digest store of `mkcomposefs`: file contents as `XX/YYYY…`, their fs-verity digest (sha256).

Unlike a repository it has no metadata and no `objects` folder, and verity is switched on where the
file system has it. What has the right name is taken to be right, as the C tool does. An object is
an unnamed file until it is complete; `sync` makes all of them durable at once, and belongs before
the image that refers to them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from bootc import fs
from bootc.composefs.digest import Algorithm, digest_fd
from bootc.errors import BootcError
from bootc.linux import fsverity, libc, reflink

WIDTH = Algorithm.SHA256.size + 1
"""Bytes of a result of `DigestStore.keep`."""
_MODE = 0o644
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_regular(path: bytes, size: int) -> int:
    """Open a regular file that had `size` bytes a moment ago."""
    fd = os.open(path, _READ)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        os.close(fd)
        raise BootcError(f"{os.fsdecode(path)} changes while it is read")
    return fd


class DigestStore:
    """A store in the folder `path`, which is made, with its parents, if it isn't there."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError:
            raise BootcError(f"{path} is not a directory") from None
        self._verity = True
        self._shards: set[str] = set()

    def keep(self, path: bytes, size: int) -> bytes:
        """Store a file, if it isn't there yet: its digest, and b"\\1" if it is new, else b"\\0"."""
        source = open_regular(path, size)
        try:
            before = os.fstat(source)
            digest = digest_fd(source, Algorithm.SHA256)
            text = digest.hex()
            shard = os.path.join(self._path, text[:2])
            if os.path.lexists(os.path.join(shard, text[2:])):
                return digest + b"\0"
            with self._shard(shard) as folder, _unnamed(folder) as (fd, name):
                if not reflink.clone(fd, source):
                    reflink.copy(fd, source)
                after = os.fstat(source)
                if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                    raise BootcError(f"{os.fsdecode(path)} changes while it is read")
                if name is None:
                    self._finish(fd, folder, digest, text[2:])
                else:
                    os.rename(name, text[2:], src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(source)
        return digest + b"\1"

    @contextlib.contextmanager
    def _shard(self, path: str) -> Iterator[int]:
        if path not in self._shards:
            os.makedirs(path, mode=0o755, exist_ok=True)
            self._shards.add(path)
        with fs.open_directory(path) as folder:
            yield folder

    def _finish(self, fd: int, folder: int, digest: bytes, name: str) -> None:
        """Give a complete unnamed file its name, and verity if that is to be had."""
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Verity wants no writer; the number must stay that of an open file for its owner.
            os.dup2(reading, fd, inheritable=False)
            if self._verity:
                self._enable(fd, digest)
            # An equal file may have been faster.
            with contextlib.suppress(FileExistsError):
                libc.link_fd(fd, folder, name)
        finally:
            os.close(reading)

    def _enable(self, fd: int, digest: bytes) -> None:
        try:
            fsverity.enable(fd, Algorithm.SHA256.kernel)
        except OSError as error:
            if not fsverity.is_unsupported(error):
                raise
            self._verity = False
            return
        measured = fsverity.measure(fd)
        if measured is None or measured[1] != digest:
            raise BootcError(f"{self._path}: a file changed while it was stored")

    def sync(self) -> None:
        """Make the objects durable."""
        with fs.open_directory(self._path) as fd:
            libc.syncfs(fd)


@contextlib.contextmanager
def _unnamed(folder: int) -> Iterator[tuple[int, str | None]]:
    """(descriptor, None) of an unnamed file, or of a file and its name where there are none."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    name: str | None = None
    try:
        fd = os.open(".", flags | os.O_TMPFILE, _MODE, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        name = fs.temporary_name(".tmp-object-")
        fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=folder)
    try:
        os.fchmod(fd, _MODE)
        yield fd, name
    except BaseException:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(fd)
