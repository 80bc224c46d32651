# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What of a composefs repository lies below its names: the directory, its lock and its objects.

Opening, making, upgrading and resetting it; storing contents under their digests; bringing them
to the disk. `repository` adds the names: streams, images and tags.

Whoever has a repository open holds a shared lock on it, see `locks`. Nothing is written before the
file system and meta.json are seen to allow it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import BinaryIO, Self

from bootc import fs
from bootc.closing import Closing
from bootc.composefs import initialize
from bootc.composefs.digest import Algorithm
from bootc.composefs.locks import GiveUp, RepositoryLock
from bootc.composefs.metadata import Metadata, load_metadata
from bootc.composefs.objects import ObjectCounts, ObjectStore
from bootc.composefs.refs import Links
from bootc.errors import BootcError
from bootc.linux import libc

_CHUNK = 1 << 20


class OpenStatus(StrEnum):
    """What `Repository.ensure` did."""

    OPENED = "Opened"
    CREATED = "Created"
    UPGRADED = "Upgraded"


class ObjectRepository(Closing):
    """An open repository, a context manager, without its names; see `Repository`."""

    def __init__(
        self,
        fd: int,
        path: str,
        metadata: Metadata,
        *,
        secure: bool,
        repository_lock: RepositoryLock,
        erofs_version: int | None = None,
    ) -> None:
        """Takes over the directory descriptor `fd` and the lock on it."""
        self.fd = fd
        self.path = path
        self.metadata = metadata
        self.secure = secure
        self.links = Links(fd, path, metadata.algorithm)
        self._lock = repository_lock
        self._erofs_version = erofs_version
        self._store: ObjectStore | None = None
        self._objects_fd = -1

    @classmethod
    def init(
        cls,
        path: str | os.PathLike[str],
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        secure: bool = True,
        erofs_version: int = 1,
        extra_versions: tuple[int, ...] = (),
        give_up: GiveUp | None = None,
    ) -> Self:
        """Make a repository, or open the one that is there if it is the same kind.

        Only the last component of `path` is created. `secure` needs fs-verity.
        """
        where = os.fspath(path)
        metadata = Metadata.fresh(algorithm, default=erofs_version, extra=extra_versions)
        created = initialize.make_directory(where)
        try:
            initialize.initialize(where, metadata, secure=secure)
        except BaseException:
            if created:
                os.rmdir(where)
            raise
        fs.sync_directory(os.path.dirname(os.path.abspath(where)))
        repo = cls.open(where, give_up=give_up)
        if secure and not repo.secure:
            repo.close()
            raise BootcError(
                f"{where} is already a repository, and an insecure one",
                hint="ask for an insecure one, or make it anew with --reset-metadata",
            )
        return repo

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        upgrade: bool = False,
        erofs_version: int | None = None,
        insecure: bool = False,
        give_up: GiveUp | None = None,
    ) -> Self:
        """Open the repository at `path` with a shared lock; close it, or use `with`.

        `upgrade` also opens an old one without meta.json, and writes that if it may write at all.
        For as long as this handle is open, `erofs_version` is the format of images, and `insecure`
        puts up with objects that have no fs-verity. For `give_up` see `RepositoryLock`.
        """
        repo, _ = cls._open(path, upgrade=upgrade, erofs_version=erofs_version, give_up=give_up)
        repo.secure = repo.secure and not insecure
        return repo

    @classmethod
    def _open(
        cls,
        path: str | os.PathLike[str],
        *,
        upgrade: bool,
        erofs_version: int | None = None,
        give_up: GiveUp | None = None,
    ) -> tuple[Self, bool]:
        """The repository and whether it was upgraded."""
        where = os.fspath(path)
        try:
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BootcError(
                f"cannot open the repository {where}: {error.strerror}",
                hint=f"make it with `cfsctl --repo {where} init`",
            ) from error
        held = None
        try:
            held = RepositoryLock(fd, where, give_up)
            found = load_metadata(fd, where)
            upgraded = found is None
            if found is None:
                found = initialize.upgrade(fd, where, allowed=upgrade)
            metadata, secure = found
            repo = cls(
                fd,
                where,
                metadata,
                secure=secure,
                repository_lock=held,
                erofs_version=erofs_version,
            )
            return repo, upgraded
        except BaseException:
            if held is not None:
                held.release()
            os.close(fd)
            raise

    @classmethod
    def ensure(
        cls,
        path: str | os.PathLike[str],
        *,
        algorithm: Algorithm | None = None,
        secure: bool = True,
        erofs_version: int = 1,
        give_up: GiveUp | None = None,
    ) -> tuple[Self, OpenStatus]:
        """Open whatever repository is at `path`, upgraded if it is old, or make one.

        One that exists keeps its configuration; only another algorithm than `algorithm`, if that
        is given, is refused. `secure` and `erofs_version` are those of a new one.
        """
        where = os.fspath(path)
        if not initialize.is_repository(where):
            made = cls.init(
                where,
                algorithm=algorithm or Algorithm.SHA512,
                secure=secure,
                erofs_version=erofs_version,
                give_up=give_up,
            )
            return made, OpenStatus.CREATED
        repo, upgraded = cls._open(where, upgrade=True, give_up=give_up)
        if algorithm not in (None, repo.algorithm):
            repo.close()
            raise BootcError(
                f"{where} is a repository with {repo.algorithm.identifier}, "
                f"not {algorithm.identifier}",
                hint="leave the algorithm out to take it as it is",
            )
        return repo, OpenStatus.UPGRADED if upgraded else OpenStatus.OPENED

    @classmethod
    def reset_metadata(cls, path: str | os.PathLike[str]) -> None:
        """Remove `streams`, `images` and meta.json, and keep the objects; `init` makes it anew.

        Waits until nobody has the repository open. An interruption leaves a whole repository or
        one without meta.json.
        """
        where = os.fspath(path)
        with fs.open_directory(where) as fd:
            held = RepositoryLock(fd, where)
            try:
                with held.exclusive():
                    initialize.reset(fd, where)
            finally:
                held.release()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            os.close(self._objects_fd)
            self._store = None
        if self.fd >= 0:
            self._lock.release()
            os.close(self.fd)
            self.fd = -1

    # -- What it is

    @property
    def algorithm(self) -> Algorithm:
        return self.metadata.algorithm

    @property
    def erofs_version(self) -> int:
        """The version of EROFS images that is wanted first: 0, 1 or 2."""
        return self.erofs_versions[0]

    @property
    def erofs_versions(self) -> tuple[int, ...]:
        """All versions of EROFS images that are to be made; the first one gets the reference."""
        if self._erofs_version is not None:
            return (self._erofs_version,)
        return (self.metadata.erofs_default, *self.metadata.erofs_extra)

    @property
    def why_read_only(self) -> str | None:
        """The reason why this repository cannot be written to, or None if it can."""
        if unknown := self.metadata.unknown_features:
            return f"{self.path} has features that this program cannot write: {', '.join(unknown)}"
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            return f"{self.path} lies on a file system that is mounted read-only"
        if not os.access(".", os.W_OK, dir_fd=self.fd, effective_ids=True):
            return f"there is no permission to write to {self.path}"
        return None

    def need_writable(self) -> None:
        """Raises `BootcError` if the repository cannot be written to."""
        reason = self.why_read_only
        if reason is not None:
            raise BootcError(f"the repository is read-only: {reason}")

    def counts(self) -> ObjectCounts:
        """What was stored since the repository was opened."""
        return ObjectCounts() if self._store is None else self._store.counts()

    # -- Objects

    @property
    def objects(self) -> ObjectStore:
        if self._store is None:
            try:
                fd = self._open_objects()
            except FileNotFoundError:
                self.need_writable()
                self.links.make_directory("objects")
                fd = self._open_objects()
            self._objects_fd = fd
            path = os.path.join(self.path, "objects")
            self._store = ObjectStore(fd, path, self.algorithm, secure=self.secure)
        return self._store

    def _open_objects(self) -> int:
        return os.open("objects", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)

    def writable_objects(self) -> ObjectStore:
        """The object store, ready for writing from any thread."""
        self.need_writable()
        store = self.objects
        store.prepare()
        return store

    def ensure_object(self, data: bytes) -> bytes:
        """Store `data` as an object, unless it is one, and return its digest."""
        with self._storing():
            return self.writable_objects().store(data)

    def ensure_object_from(self, reader: BinaryIO, size: int | None = None) -> bytes:
        """Store what `reader` gives to its end, which must be `size` bytes if that is said."""
        return self.store_pieces(iter(partial(reader.read, _CHUNK), b""), size)[0]

    def store_pieces(self, pieces: Iterable[bytes], size: int | None = None) -> tuple[bytes, int]:
        """Store an object that comes in pieces, `size` bytes if that is said, and is never in
        memory as a whole; returns its digest and size."""
        with self._storing():
            store = self.writable_objects()
            fd = store.create()
            done = 0
            try:
                for piece in pieces:
                    fs.write_all(fd, piece)
                    done += len(piece)
                if size is not None and done != size:
                    raise BootcError(f"got {done} bytes for an object of {size}")
            except BaseException:
                store.discard(fd)
                raise
            return store.adopt(fd, done), done

    def import_object(self, fd: int, *, hardlink: bool = False, zerocopy: bool = False) -> bytes:
        """Make what the regular file `fd` holds an object; see `ObjectStore.import_file`."""
        with self._storing():
            return self.writable_objects().import_file(fd, hardlink=hardlink, zerocopy=zerocopy)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.storing_failed(error) from error

    def storing_failed(self, error: OSError) -> BootcError:
        """The error to report when an object could not be stored."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"make room on the file system of {self.path}" if full else None
        return BootcError(f"cannot store an object in {self.path}: {error.strerror}", hint=hint)

    def open_object(self, digest: bytes) -> int:
        """A verified descriptor of the object, to be closed by the caller."""
        return self.objects.open(digest)

    def read_object(self, digest: bytes) -> bytes:
        with os.fdopen(self.open_object(digest), "rb") as file:
            return file.read()

    # -- Durability and locks

    def sync(self) -> None:
        """Bring to the disk what was stored since the last time."""
        store = self._store
        if store is not None and store.changed:
            store.changed = False
            try:
                libc.syncfs(self.fd)
            except OSError as error:
                store.changed = True
                raise self.storing_failed(error) from error

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Bring to the disk what is stored while the block does something else.

        At the end of the block that is done. What the block itself stores waits for the next sync,
        as anything does; so it may publish, too.
        """
        store = self._store
        if store is None or not store.changed:
            yield
            return
        failures: list[OSError] = []

        def work() -> None:
            try:
                libc.syncfs(self.fd)
            except OSError as error:
                failures.append(error)

        before = store.counts()
        thread = threading.Thread(target=work, name="sync", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        for error in failures:
            raise self.storing_failed(error) from error
        if store.counts() == before:
            store.changed = False

    @contextmanager
    def exclusive(self, give_up: GiveUp | None = None) -> Iterator[None]:
        """Wait until nobody else has the repository open, and keep everybody out."""
        with self._lock.exclusive(give_up):
            yield
