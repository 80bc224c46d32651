# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The object store: file contents, each once, under the fs-verity digest that the kernel measures.

    objects/xx/yyyy…   xx and yyyy…: the digest in lowercase hexadecimal; mode 0644, verity on

An object is an unnamed file (O_TMPFILE) that gets its name when it is complete, so that a failure
leaves nothing behind. Where the file system has verity the kernel computes the digest; elsewhere
(only in a repository that isn't secure) it is computed here. Nothing is synced: the repository
calls syncfs once before anything refers to the objects.

An object that exists already is measured before it is relied upon. One that a power cut damaged
(other digest, no verity, wrong size) is replaced by a rename.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator

from bootc import fs
from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd
from bootc.errors import BootcError
from bootc.linux import fsverity, libc

OBJECT_MODE = 0o644
_BUSY_TRIES = 200
_BUSY_PAUSE = 0.002


def object_path(digest: bytes) -> str:
    """`xx/yyyy…`."""
    name = digest.hex()
    return f"{name[:2]}/{name[2:]}"


class ObjectStore:
    """The directory `objects`; safe to use from several threads once `prepare` was called."""

    def __init__(self, fd: int, path: str, algorithm: Algorithm, *, secure: bool) -> None:
        """Borrows the directory descriptor `fd`; `path` is for messages."""
        self.path = path
        self.algorithm = algorithm
        self.secure = secure
        self._fd = fd
        self._shards: list[int] = []
        self._measures = False
        self._names: set[str] = set()

    def close(self) -> None:
        while self._shards:
            os.close(self._shards.pop())

    def prepare(self) -> None:
        """Open (and make) the 256 directories and find out whether there is verity here."""
        if self._shards:
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        opened: list[int] = []
        try:
            for number in range(256):
                name = f"{number:02x}"
                try:
                    fd = os.open(name, flags, dir_fd=self._fd)
                except FileNotFoundError:
                    os.mkdir(name, 0o755, dir_fd=self._fd)
                    fd = os.open(name, flags, dir_fd=self._fd)
                opened.append(fd)
                self._names.update(name + rest for rest in os.listdir(fd))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        self._shards = opened
        self._measures = self._probe()

    def _probe(self) -> bool:
        fd = self.create()
        try:
            os.write(fd, b"probe")
            fd = _reopen(fd)
            _enable(fd, self.algorithm.kernel)
        except OSError as error:
            if not fsverity.is_unsupported(error):
                raise
            if self.secure:
                raise BootcError(
                    f"{self.path}: the file system has no fs-verity",
                    hint="use ext4 with `tune2fs -O verity`, or btrfs, or an insecure repository",
                ) from error
            return False
        finally:
            os.close(fd)
        return True

    def names(self) -> Iterator[str]:
        """The hexadecimal digests of all objects."""
        for number in range(256):
            shard = f"{number:02x}"
            try:
                with fs.open_directory(shard, dir_fd=self._fd) as fd:
                    for rest in os.listdir(fd):
                        yield shard + rest
            except FileNotFoundError:
                continue

    def create(self) -> int:
        """A new unnamed file, writable; give it to `adopt` or close it."""
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, OBJECT_MODE, dir_fd=self._fd)

    def open(self, digest: bytes) -> int:
        """Open an object for reading, verified. Raises `BootcError` if it is missing or damaged."""
        name = object_path(digest)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError as error:
            raise BootcError(
                f"{self.path}/{name}: the object is missing", hint="pull the image again"
            ) from error
        try:
            measured = fsverity.measure(fd)
            if measured is None and self.secure:
                raise BootcError(f"{self.path}/{name}: the object has no fs-verity")
            if measured is not None and measured[1] != digest:
                raise BootcError(
                    f"{self.path}/{name}: the content has the digest {measured[1].hex()}"
                )
        except BaseException:
            os.close(fd)
            raise
        return fd

    def store(self, data: bytes) -> bytes:
        """Store `data`, if it isn't there yet, and return its digest."""
        digest: bytes | None = None
        if not self._measures or self._names:
            # Objects were here when we came, so this one may be: hashing is cheaper than writing.
            digest = digest_bytes(data, self.algorithm)
            if self._is_stored(digest, len(data)):
                return digest
        fd = self.create()
        try:
            fs.write_all(fd, data)
            if self._measures:
                fd = _reopen(fd)
                measured = self._measure(fd)
                if digest is not None and measured != digest:
                    raise BootcError(f"{self.path}: the kernel measured another digest than ours")
                digest = measured
            assert digest is not None
            self._link(fd, digest, len(data))
        finally:
            os.close(fd)
        return digest

    def adopt(self, fd: int, size: int) -> bytes:
        """Make the file `fd` from `create`, written and `size` bytes long, an object; closes it."""
        try:
            fd = _reopen(fd)
            digest = self._measure(fd) if self._measures else digest_fd(fd, self.algorithm)
            self._link(fd, digest, size)
        finally:
            os.close(fd)
        return digest

    def _is_stored(self, digest: bytes, size: int) -> bool:
        if self._measures and digest.hex() not in self._names:
            return False
        return self._is_sound(digest, size)

    def _is_sound(self, digest: bytes, size: int) -> bool:
        name = digest.hex()
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(name[2:], flags, dir_fd=self._shards[digest[0]])
        except FileNotFoundError:
            return False
        try:
            measured = fsverity.measure(fd)
            if measured is None:
                return not self._measures and os.fstat(fd).st_size == size
            return measured[1] == digest
        finally:
            os.close(fd)

    def _measure(self, fd: int) -> bytes:
        _enable(fd, self.algorithm.kernel)
        measured = fsverity.measure(fd)
        assert measured is not None
        return measured[1]

    def _link(self, fd: int, digest: bytes, size: int) -> None:
        name = digest.hex()
        try:
            libc.link_fd(fd, self._shards[digest[0]], name[2:])
        except FileExistsError:
            if self._is_sound(digest, size):
                return
            temporary = fs.temporary_name(".tmp-object-")
            libc.link_fd(fd, self._fd, temporary)
            os.rename(temporary, name[2:], src_dir_fd=self._fd, dst_dir_fd=self._shards[digest[0]])


def _reopen(fd: int) -> int:
    """Exchange a writable descriptor for a read-only one: verity wants no writer."""
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return reading


def _enable(fd: int, algorithm: int) -> None:
    for attempt in range(_BUSY_TRIES):
        try:
            fsverity.enable(fd, algorithm)
        except OSError as error:
            # Another thread may be between fork and exec and share our closed writable descriptor.
            if error.errno != errno.ETXTBSY or attempt == _BUSY_TRIES - 1:
                raise
            time.sleep(_BUSY_PAUSE)
        else:
            return


def lock(fd: int, *, exclusive: bool = False) -> None:
    """flock(2) on the repository's directory; waits."""
    fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
