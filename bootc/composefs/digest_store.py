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
from collections.abc import Iterator

from bootc import fs
from bootc.composefs.digest import Algorithm, FileHasher
from bootc.errors import BootcError
from bootc.linux import fsverity, libc, reflink

WIDTH = Algorithm.SHA256.size + 1
"""Bytes of a result of `DigestStore.keep`."""
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""How a file is opened that was regular a moment ago."""
_MODE = 0o644
_ROOM = 256 * 1024
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def changed(path: bytes) -> BootcError:
    return BootcError(f"{os.fsdecode(path)} changes while it is read")


class FileDigester:
    """fs-verity digests of many files that must not change meanwhile."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._hasher = FileHasher(algorithm)

    def digest(self, path: bytes, size: int) -> bytes:
        """The digest of a regular file that had `size` bytes a moment ago."""
        fd = os.open(path, READ)
        try:
            return self.read(fd, path, size)[0]
        finally:
            os.close(fd)

    def read(self, fd: int, path: bytes, size: int) -> tuple[bytes, memoryview | None]:
        """(digest, the whole content if it fits the buffer) of an open file."""
        digest, found, content = self._hasher.digest(fd)
        if found != size:
            raise changed(path)
        return digest, content


class DigestStore:
    """A store in the folder `path`, which is made, with its parents, if it isn't there."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError:
            raise BootcError(f"{path} is not a directory") from None
        self._digester = FileDigester(Algorithm.SHA256)
        self._verity = self._clones = self._unnamed = True
        self._shards: dict[str, int] = {}
        self._names: set[str] | None = None

    def keep(self, path: bytes, size: int) -> bytes:
        """Store a file, if it isn't there yet: its digest, and b"\\1" if it is new, else b"\\0"."""
        source = os.open(path, READ)
        try:
            before = os.fstat(source) if size >= _ROOM else None
            digest, content = self._digester.read(source, path, size)
            name = digest.hex()
            if self._names is None:
                # By each process, when it has work: the one that looks for files needn't wait.
                self._names = self._list()
            if name in self._names:
                return digest + b"\0"
            folder = self._open_shard(name[:2])
            if self._exists(folder, name[2:]):
                return digest + b"\0"
            with self._storing(folder, name[2:], digest) as fd:
                self._fill(fd, source, content)
                if before is not None and _version(before) != _version(os.fstat(source)):
                    raise changed(path)
        finally:
            os.close(source)
        self._names.add(name)
        return digest + b"\1"

    def _list(self) -> set[str]:
        """The names of all objects."""
        return {
            shard + name
            for shard in os.listdir(self._path)
            if len(shard) == 2
            for name in os.listdir(os.path.join(self._path, shard))
        }

    def _exists(self, folder: int, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=folder, follow_symlinks=False)

    def _open_shard(self, shard: str) -> int:
        """A directory, "" for the whole store; it stays open as long as this process."""
        fd = self._shards.get(shard)
        if fd is None:
            path = os.path.join(self._path, shard)
            os.makedirs(path, mode=0o755, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = self._shards[shard] = os.open(path, flags)
        return fd

    def close(self) -> None:
        """Close what is open in this process."""
        while self._shards:
            os.close(self._shards.popitem()[1])

    @contextlib.contextmanager
    def _storing(self, folder: int, name: str, digest: bytes) -> Iterator[int]:
        """A new file to be filled, which gets its name when the block ends well."""
        # All in one directory: ext4 then takes inodes that lie together, in half the time.
        top = self._open_shard("")
        fd, temporary = self._create(top)
        try:
            yield fd
            if self._verity:
                self._enable(fd, digest)
            if temporary is not None:
                os.rename(temporary, name, src_dir_fd=top, dst_dir_fd=folder)
                temporary = None
            else:
                # Another process may have had an equal file.
                with contextlib.suppress(FileExistsError):
                    libc.link_fd(fd, folder, name)
        finally:
            os.close(fd)
            if temporary is not None:
                os.unlink(temporary, dir_fd=top)

    def _create(self, folder: int) -> tuple[int, str | None]:
        """(descriptor, None) of an unnamed file, or of a file and its name where there are none."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        if self._unnamed:
            try:
                return os.open(".", flags | os.O_TMPFILE, _MODE, dir_fd=folder), None
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
                self._unnamed = False
        name = fs.temporary_name(".tmp-object-")
        return os.open(name, flags | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=folder), name

    def _fill(self, fd: int, source: int, content: memoryview | None) -> None:
        if self._clones:
            self._clones = reflink.clone(fd, source)
            if self._clones:
                return
        if content is None:
            reflink.copy(fd, source)
        else:
            fs.write_all(fd, content)

    def _enable(self, fd: int, digest: bytes) -> None:
        """Switch verity on, if there is any, for the file `fd`, which is read-only after this."""
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(reading, fd, inheritable=False)
        os.close(reading)
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


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
