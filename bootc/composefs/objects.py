# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The object store: file contents, each once, under the fs-verity digest that the kernel measures.

    objects/xx/yyyy…   xx and yyyy…: the digest in lowercase hexadecimal; mode 0644, verity on

An object is an unnamed file (O_TMPFILE) that gets its name when it is complete, so that a failure
leaves nothing behind. A file system without O_TMPFILE gets it as `objects/.tmp-object-…`, renamed.
Where the file system has verity the kernel computes the digest; elsewhere (only in a repository
that isn't secure) it is computed here. Nothing is synced: the repository calls syncfs once before
anything refers to the objects.

Three routes lead here: bytes (`store`), a file that the caller has written (`create`, `adopt`), and
a file that exists elsewhere (`import_file`: shared extents, else a hard link, else a copy).

An object that exists already is measured before it is relied upon. One that a power cut damaged
(other digest, no verity, wrong size) is replaced by a rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from bootc import fs
from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd, digest_of_descriptor
from bootc.composefs.metadata import no_verity
from bootc.errors import BootcError
from bootc.linux import fsverity, libc, reflink
from bootc.linux.verity_descriptor import read_descriptor

OBJECT_MODE = 0o644
TEMPORARY = ".tmp-object-"
"""How the names of files in `objects` begin that a killed writer may leave."""
SHARDS = tuple(f"{number:02x}" for number in range(256))
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_COPIES = 10
WRITTEN_EARLY = 256 << 10
"""Bytes: from this size on the disk begins to write an object at once and not only when all is
synced, which else takes a quarter of a pull. (To enable fs-verity writes it anyway.)"""
# What a hard link fails with when a copy would do: another file system, too many links, not ours.
_NO_LINK = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOENT)


Compute = Callable[[int, int, Algorithm], bytes]


def object_path(digest: bytes) -> str:
    """`xx/yyyy…`."""
    name = digest.hex()
    return f"{name[:2]}/{name[2:]}"


class Route(StrEnum):
    """How an object got here."""

    WRITTEN = "written"
    EXISTING = "existing"
    REFLINKED = "reflinked"
    HARDLINKED = "hardlinked"
    COPIED = "copied"


_WITH_DATA = (Route.WRITTEN, Route.COPIED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCounts:
    """What a store did, in objects: `written` from bytes, `copied` … from other files.

    `new_bytes` are the sizes of all that are new, `existing_bytes` of those that were here.
    """

    written: int = 0
    existing: int = 0
    reflinked: int = 0
    hardlinked: int = 0
    copied: int = 0
    new_bytes: int = 0
    existing_bytes: int = 0

    @property
    def new(self) -> int:
        return self.written + self.reflinked + self.hardlinked + self.copied

    def __sub__(self, before: ObjectCounts) -> ObjectCounts:
        """What was done since `before`."""
        names = [field.name for field in fields(self)]
        return ObjectCounts(**{name: getattr(self, name) - getattr(before, name) for name in names})


class ObjectStore:
    """The directory `objects`; safe to use from several threads once `prepare` was called."""

    def __init__(self, fd: int, path: str, algorithm: Algorithm, *, secure: bool) -> None:
        """Borrows the directory descriptor `fd`; `path` is for messages."""
        self.path = path
        self.algorithm = algorithm
        self.secure = secure
        self.changed = False
        """Whether something was stored since the repository synced (which resets it)."""
        self._fd = fd
        self._shards: list[int] = []
        self._measures = False
        self._named = False
        self._names: set[str] = set()
        self._no_reflink: set[int] = set()
        self._no_link: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._guard = threading.Lock()

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
            for name in SHARDS:
                try:
                    fd = os.open(name, flags, dir_fd=self._fd)
                except FileNotFoundError:
                    _make_directory(name, self._fd)
                    fd = os.open(name, flags, dir_fd=self._fd)
                opened.append(fd)
            self._measures = self._probe()
            if self._measures:
                for name, fd in zip(SHARDS, opened, strict=True):
                    self._names.update(name + rest for rest in os.listdir(fd))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        self._shards = opened

    def _probe(self) -> bool:
        """Whether the file system has verity; a secure repository must have it."""
        fd = self.create()
        try:
            fs.write_all(fd, b"probe")
            fd = self._finish(fd)
            fsverity.enable(fd, self.algorithm.kernel)
        except OSError as error:
            if error.errno == errno.ETXTBSY:
                return True  # asked for after the file system was
            if not fsverity.is_unsupported(error):
                raise
            if self.secure:
                raise no_verity(self.path) from error
            return False
        finally:
            self.discard(fd)
        return True

    def counts(self) -> ObjectCounts:
        """What was stored since the store was opened."""
        with self._guard:
            return ObjectCounts(**self._counts)

    def names(self) -> Iterator[str]:
        """The names in the shards, put together: of a sound store, hexadecimal digests."""
        for shard in SHARDS:
            for rest in self.shard(shard):
                yield shard + rest

    def shard(self, shard: str) -> list[str]:
        """The names in one of the 256 directories, in no order."""
        try:
            with fs.open_directory(shard, dir_fd=self._fd) as fd:
                return os.listdir(fd)
        except FileNotFoundError:
            return []

    def create(self, *, readable: bool = False) -> int:
        """A new unnamed file, writable; give it to `adopt` or to `discard`."""
        flags = (os.O_RDWR if readable else os.O_WRONLY) | os.O_CLOEXEC
        if not self._named:
            try:
                return os.open(".", flags | os.O_TMPFILE, OBJECT_MODE, dir_fd=self._fd)
            except OSError as error:
                if not fs.lacks_tmpfile(error):
                    raise
                self._named = True
        name = fs.temporary_name(TEMPORARY)
        return os.open(name, flags | os.O_CREAT | os.O_EXCL, OBJECT_MODE, dir_fd=self._fd)

    def discard(self, fd: int) -> None:
        """Close a file from `create` that is not going to be an object."""
        try:
            if self._named and (name := self._temporary(fd)) is not None:
                os.unlink(name, dir_fd=self._fd)
        finally:
            os.close(fd)

    def _temporary(self, fd: int) -> str | None:
        """The name in `objects` of a file from `create`, where those have names."""
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        return name if name.startswith(TEMPORARY) and " " not in name else None

    def open(self, digest: bytes) -> int:
        """Open an object for reading, verified. Raises `BootcError` if it is missing or damaged.

        "Verified" is done by the kernel. Where a file has no verity, which only a repository that
        isn't secure puts up with, nothing is.
        """
        name = object_path(digest)
        try:
            fd = os.open(name, _READ, dir_fd=self._fd)
        except FileNotFoundError:
            raise BootcError(
                f"{self.path}/{name}: the object is missing", hint="pull the image again"
            ) from None
        except OSError as error:
            raise BootcError(f"cannot open {self.path}/{name}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BootcError(f"{self.path}/{name}: the object is no regular file")
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

    def find(self, digest: bytes, size: int) -> int | None:
        """A descriptor of the object if it is here and the kernel vouches for it; it is counted."""
        if not self._measures:
            return None
        try:
            fd = os.open(digest.hex()[2:], _READ, dir_fd=self._shards[digest[0]])
        except FileNotFoundError:
            return None
        measured = fsverity.measure(fd)
        if measured is None or measured[1] != digest or os.fstat(fd).st_size != size:
            os.close(fd)
            return None
        self._count(Route.EXISTING, size)
        return fd

    @property
    def measures(self) -> bool:
        """Whether the kernel computes the digests; known once `prepare` was called."""
        return self._measures

    def may_clone(self, source: int) -> bool:
        """Whether `clone` is worth trying: False once it has failed for this file system."""
        return os.fstat(source).st_dev not in self._no_reflink

    def clone(self, source: int) -> int | None:
        """A readable file as `create` makes it, with shared extents of `source`, or None.

        What it holds stays, whatever happens to `source` afterwards.
        """
        device = os.fstat(source).st_dev
        if device in self._no_reflink:
            return None
        fd = self.create(readable=True)
        try:
            cloned = reflink.clone(fd, source)
        except BaseException:
            self.discard(fd)
            raise
        if cloned:
            return fd
        self.discard(fd)
        self._no_reflink.add(device)
        return None

    def store(self, data: bytes | memoryview, *, digest: bytes | None = None) -> bytes:
        """Store `data`, if it isn't there yet, and return its digest.

        `digest`, if the caller has computed it, is believed.
        """
        if not self._measures or self._names:
            # Objects were here when we came, so this one may be: hashing is cheaper than writing.
            digest = digest or digest_bytes(data, self.algorithm)
            if self._is_stored(digest, len(data)):
                self._count(Route.EXISTING, len(data))
                return digest
        fd = self.create()
        try:
            fs.write_all(fd, data)
            if self._measures:
                fd = self._finish(fd)
                measured = self._measure(fd)
                if digest is not None and measured != digest:
                    raise BootcError(f"{self.path}: the kernel measured another digest than ours")
                digest = measured
            assert digest is not None
            self._link(fd, digest, len(data), Route.WRITTEN)
        finally:
            self.discard(fd)
        return digest

    def adopt(
        self,
        fd: int,
        size: int,
        *,
        route: Route = Route.WRITTEN,
        compute: Compute | None = None,
    ) -> bytes:
        """Make the file `fd` from `create`, written and `size` bytes long, an object; closes it.

        `compute` (descriptor, size, algorithm) finds its digest where the kernel doesn't.
        """
        try:
            fd = self._finish(fd)
            if self._measures:
                digest = self._measure(fd)
            elif compute is not None:
                digest = compute(fd, size, self.algorithm)
            else:
                digest = digest_fd(fd, self.algorithm)
            self._link(fd, digest, size, route)
        finally:
            self.discard(fd)
        return digest

    def import_file(self, source: int, *, hardlink: bool = False, zerocopy: bool = False) -> bytes:
        """Make what the regular file `source` (readable) holds an object; returns its digest.

        Shared extents are tried first. `hardlink` then allows a hard link: the source is the
        object, verity is enabled on it, and it must never be written again. Last comes a copy,
        which `zerocopy` forbids (and implies `hardlink`): then the import may fail.
        """
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise BootcError(f"{_path_of(source)} is no regular file")
        fd = self.clone(source)
        if fd is not None:
            return self.adopt(fd, os.fstat(fd).st_size, route=Route.REFLINKED)
        if hardlink or zerocopy:
            digest = self._import_link(source, found.st_size)
            if digest is not None:
                return digest
        if zerocopy:
            raise BootcError(
                f"{_path_of(source)} can be neither reflinked nor hard-linked into {self.path}",
                hint="put both on one file system, or allow a copy",
            )
        copied = self.create()
        try:
            size = reflink.copy(copied, source)
        except BaseException:
            self.discard(copied)
            raise
        return self.adopt(copied, size, route=Route.COPIED)

    def can_link(self, source: int) -> bool:
        """Whether the file `source` could become an object by a hard link and stay as it is.

        Where objects have verity it would have to have that already: here it isn't switched on.
        """
        device = os.fstat(source).st_dev
        if device in self._no_link or device != os.fstat(self._fd).st_dev:
            return False
        if not self._measures:
            return True
        return self._sealed(source) is not None

    def _sealed(self, source: int) -> bytes | None:
        """The digest of a file that somebody else sealed, if he did it as it is done here.

        What the kernel measures doesn't tell: with other blocks or a salt it is no object's name.
        """
        descriptor = read_descriptor(source)
        return digest_of_descriptor(descriptor, self.algorithm) if descriptor else None

    def link(self, source: int, size: int, *, compute: Compute | None = None) -> bytes | None:
        """Make the file `source` (readable) itself an object; its digest, or None if it can't be.

        `compute`: as in `adopt`.
        """
        if not self.can_link(source):
            return None
        sealed = self._sealed(source) if self._measures else None
        if sealed is not None:
            digest = sealed
        elif compute is not None:
            digest = compute(source, size, self.algorithm)
        else:
            digest = digest_fd(source, self.algorithm)
        try:
            self._link(source, digest, size, Route.HARDLINKED)
        except OSError as error:
            if error.errno == errno.EXDEV:
                # podman mounts the folder of its layers on itself, and no link leaves a mount.
                self._no_link.add(os.fstat(source).st_dev)
            if error.errno in _NO_LINK:
                return None
            raise
        return digest

    def _import_link(self, source: int, size: int) -> bytes | None:
        """The digest of `source` after it became an object itself, or None if it cannot."""
        reading = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(reading).st_dev != os.fstat(self._fd).st_dev:
                return None
            if self._measures:
                try:
                    fsverity.enable_patiently(reading, self.algorithm.kernel)
                except FileExistsError:
                    pass
                except OSError as error:
                    # Somebody still writes to it, or we may not change it: it can't be shared.
                    if error.errno in (errno.ETXTBSY, *_NO_LINK):
                        return None
                    raise
                sealed = self._sealed(reading)
                if sealed is None:
                    return None
                digest = sealed
            else:
                digest = digest_fd(reading, self.algorithm)
            try:
                self._link(reading, digest, size, Route.HARDLINKED)
            except OSError as error:
                if error.errno in _NO_LINK:
                    return None
                raise
            return digest
        finally:
            os.close(reading)

    def _finish(self, fd: int) -> int:
        """Exchange a writable descriptor for a read-only one: verity wants no writer."""
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(fd)
        return reading

    def _measure(self, fd: int) -> bytes:
        """Enable verity on `fd` and return the digest.

        A writer that doesn't go away is another process that inherited the descriptor; it can't
        have that of a copy, which then is what the number `fd` means.
        """
        for _ in range(_COPIES):
            try:
                fsverity.enable_patiently(fd, self.algorithm.kernel)
                break
            except FileExistsError:
                break
            except OSError as error:
                if error.errno != errno.ETXTBSY:
                    raise
            copied = self.create()
            try:
                reflink.copy(copied, fd)
                copied = self._finish(copied)
            except BaseException:
                self.discard(copied)
                raise
            self._replace(fd, copied)
        measured = fsverity.measure(fd)
        if measured is None:
            raise BootcError(f"{self.path}: a new file could not be given fs-verity")
        return measured[1]

    def _replace(self, fd: int, other: int) -> None:
        """Let the number `fd` mean the file `other`; what it meant is discarded."""
        self.discard(os.dup(fd))
        os.dup2(other, fd, inheritable=False)
        os.close(other)

    def _is_stored(self, digest: bytes, size: int) -> bool:
        if self._measures and digest.hex() not in self._names:
            return False
        return self._is_sound(digest, size)

    def _is_sound(self, digest: bytes, size: int) -> bool:
        name = digest.hex()
        try:
            fd = os.open(name[2:], _READ, dir_fd=self._shards[digest[0]])
        except FileNotFoundError:
            return False
        try:
            measured = fsverity.measure(fd)
            if measured is None and self._measures and not self.secure:
                # It was stored before the file system had verity, or by somebody without it.
                with contextlib.suppress(OSError):
                    fsverity.enable_patiently(fd, self.algorithm.kernel)
                measured = fsverity.measure(fd)
            if measured is None:
                return not self._measures and os.fstat(fd).st_size == size
            return measured[1] == digest
        finally:
            os.close(fd)

    def _link(self, fd: int, digest: bytes, size: int, route: Route) -> None:
        """Give the complete file `fd` its name, unless a sound object has it."""
        name = digest.hex()
        shard = self._shards[digest[0]]
        temporary = self._temporary(fd) if self._named and route != Route.HARDLINKED else None
        try:
            if temporary is None:
                libc.link_fd(fd, shard, name[2:])
            else:
                self._rename(temporary, shard, name[2:])
        except FileExistsError:
            if self._is_sound(digest, size):
                self._count(Route.EXISTING, size)
                return
            if temporary is None:
                temporary = fs.temporary_name(TEMPORARY)
                libc.link_fd(fd, self._fd, temporary)
            os.rename(temporary, name[2:], src_dir_fd=self._fd, dst_dir_fd=shard)
        if size >= WRITTEN_EARLY and route in _WITH_DATA and not self._measures:
            libc.start_writing(fd)
        self._count(route, size)

    def _rename(self, temporary: str, shard: int, name: str) -> None:
        try:
            libc.renameat2(self._fd, temporary, shard, name, libc.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A file system without that flag: `discard` is going to remove the other name.
            os.link(temporary, name, src_dir_fd=self._fd, dst_dir_fd=shard)

    def _count(self, route: Route, size: int) -> None:
        self.changed = True
        with self._guard:
            self._counts[route.value] += 1
            self._counts["existing_bytes" if route is Route.EXISTING else "new_bytes"] += size


def _make_directory(name: str, dir_fd: int) -> None:
    """Make a directory that another writer may make at the same moment."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=dir_fd)


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
