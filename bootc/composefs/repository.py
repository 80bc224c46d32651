# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A composefs repository: objects, the images and streams made of them, and references.

    meta.json                    what the repository is; its own verity makes it secure
    objects/xx/yyyy…             see `objects`
    images/<hex digest>          -> ../objects/xx/yyyy…      only what is linked here gets mounted
    images/refs/<name>           -> ../<hex digest>
    streams/<content id>         -> ../objects/xx/yyyy…      split streams
    streams/refs/oci/<tag>       -> ../../<content id>       `%` and `/` of a tag are escaped

meta.json: `version` 1; `algorithm`, as `fsverity-sha512-12`; `features`, three lists of
flags (an unknown incompatible one is refused); `erofs_formats`, whose `default` is the version of
the images. Whoever has a repository open holds a shared flock on its directory; the garbage
collector takes it exclusively.

Links are relative and as short as possible. Before a link is made everything it leads to is on
the disk (one syncfs); a link is replaced in one step and its directory is synced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self

from bootc import fs, jsonutil
from bootc.composefs.digest import Algorithm
from bootc.composefs.objects import ObjectStore, lock, object_path
from bootc.errors import BootcError, FormatError
from bootc.linux import fsverity, libc

_V1_EROFS = "v1_erofs"
_CHUNK = 1 << 20
OCI_REFS = "oci"


class NotFoundError(BootcError):
    """A stream, image or reference that isn't in the repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The content of meta.json."""

    algorithm: Algorithm
    erofs_default: int = 1
    erofs_extra: tuple[int, ...] = ()
    compatible: tuple[str, ...] = ()
    read_only_compatible: tuple[str, ...] = field(default=(_V1_EROFS,))

    def to_json(self) -> str:
        formats: dict[str, int | list[int]] = {"default": self.erofs_default}
        if self.erofs_extra:
            formats["extra"] = sorted(self.erofs_extra)
        return jsonutil.pretty(
            {
                "version": 1,
                "algorithm": self.algorithm.identifier,
                "features": {
                    "compatible": list(self.compatible),
                    "read-only-compatible": list(self.read_only_compatible),
                    "incompatible": [],
                },
                "erofs_formats": formats,
            }
        )


def read_algorithm(identifier: str, source: str) -> Algorithm:
    """The algorithm that `fsverity-sha512-12` and the like name."""
    for algorithm in Algorithm:
        if algorithm.identifier == identifier:
            return algorithm
    raise FormatError(source, ".algorithm", f"unknown algorithm {identifier!r}")


def read_metadata(text: bytes, source: str) -> Metadata:
    """Parse meta.json; refuses what this program would handle wrongly."""
    top = jsonutil.read_object(text, source)
    if top.integer("version") > 1:
        raise FormatError(source, ".version", f"version {top.integer('version')} is too new")
    features = top.optional_table("features")
    flags: dict[str, tuple[str, ...]] = {}
    for kind in ("compatible", "read-only-compatible", "incompatible"):
        listed = features is not None and features.has(kind)
        flags[kind] = tuple(features.texts(kind)) if features is not None and listed else ()
    if flags["incompatible"]:
        raise FormatError(
            source, ".features.incompatible", f"unknown features {list(flags['incompatible'])}"
        )
    default, extra = 2, tuple[int, ...]()
    formats = top.optional_table("erofs_formats")
    if formats is not None:
        default = formats.integer("default")
        listed = formats.value.get("extra", [])
        if not isinstance(listed, list) or not all(isinstance(item, int) for item in listed):
            raise FormatError(source, ".erofs_formats.extra", "expected integers")
        extra = tuple(listed)
    if default == 2 and not extra and _V1_EROFS in flags["read-only-compatible"]:
        default = 1
    if default not in (0, 1, 2):
        raise FormatError(source, ".erofs_formats.default", f"unknown EROFS version {default}")
    return Metadata(
        algorithm=read_algorithm(top.text("algorithm"), source),
        erofs_default=default,
        erofs_extra=extra,
        compatible=flags["compatible"],
        read_only_compatible=flags["read-only-compatible"],
    )


def escape_tag(name: str) -> str:
    """The file name of a tag. Raises `BootcError` for a name that can't be one."""
    if not name or name.startswith("@") or "\0" in name or name in (".", ".."):
        raise BootcError(f"{name!r} is no valid tag name")
    return name.replace("%", "%25").replace("/", "%2F")


def unescape_tag(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


class Repository:
    """An open repository, a context manager; made by `Repository.init` and `Repository.open`."""

    def __init__(self, fd: int, path: str, metadata: Metadata, *, secure: bool) -> None:
        """Takes over the directory descriptor `fd`, locked."""
        self.fd = fd
        self.path = path
        self.metadata = metadata
        self.secure = secure
        self._store: ObjectStore | None = None
        self._objects_fd = -1
        self._dirty = False

    @classmethod
    def init(
        cls,
        path: str | os.PathLike[str],
        *,
        algorithm: Algorithm = Algorithm.SHA512,
        secure: bool = True,
        erofs_version: int = 1,
    ) -> Self:
        """Make a repository, or open the one that is there if it is the same kind.

        Only the last component of `path` is created. `secure` needs fs-verity.
        """
        flags = (_V1_EROFS,) if erofs_version == 1 else ()
        metadata = Metadata(
            algorithm=algorithm, erofs_default=erofs_version, read_only_compatible=flags
        )
        created = False
        try:
            os.mkdir(path, 0o700)
            created = True
        except FileExistsError:
            pass
        except OSError as error:
            raise BootcError(f"cannot make the repository {path}: {error.strerror}") from error
        try:
            _initialize(os.fspath(path), metadata, secure=secure)
        except BaseException:
            if created:
                os.rmdir(path)
            raise
        fs.sync_directory(os.path.dirname(os.path.abspath(path)))
        repo = cls.open(path)
        if secure and not repo.secure:
            repo.close()
            raise BootcError(
                f"{path} is already a repository, and an insecure one",
                hint="ask for an insecure one, or remove meta.json to make it anew",
            )
        return repo

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the repository at `path` with a shared lock; close it, or use `with`."""
        where = os.fspath(path)
        try:
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BootcError(
                f"cannot open the repository {where}: {error.strerror}",
                hint=f"make it with `cfsctl --repo {where} init`",
            ) from error
        try:
            lock(fd)
            metadata, secure = _load_metadata(fd, where)
            return cls(fd, where, metadata, secure=secure)
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            os.close(self._objects_fd)
            self._store = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def algorithm(self) -> Algorithm:
        return self.metadata.algorithm

    @property
    def erofs_version(self) -> int:
        """The version of EROFS images that this repository wants: 0, 1 or 2."""
        return self.metadata.erofs_default

    @property
    def objects(self) -> ObjectStore:
        if self._store is None:
            self._make_directory("objects")
            self._objects_fd = os.open(
                "objects", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd
            )
            path = os.path.join(self.path, "objects")
            self._store = ObjectStore(self._objects_fd, path, self.algorithm, secure=self.secure)
        return self._store

    def writable_objects(self) -> ObjectStore:
        """The object store, ready for writing from any thread."""
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY or not os.access(
            ".", os.W_OK, dir_fd=self.fd
        ):
            raise BootcError(f"the repository {self.path} is read-only")
        self._dirty = True
        store = self.objects
        store.prepare()
        return store

    def ensure_object(self, data: bytes) -> bytes:
        """Store `data` as an object, unless it is one, and return its digest."""
        return self.writable_objects().store(data)

    def ensure_object_from(self, reader: BinaryIO, size: int | None = None) -> bytes:
        """Store what `reader` gives to its end, which must be `size` bytes if that is said."""
        store = self.writable_objects()
        fd = store.create()
        done = 0
        try:
            while chunk := reader.read(_CHUNK):
                fs.write_all(fd, chunk)
                done += len(chunk)
            if size is not None and done != size:
                raise BootcError(f"got {done} bytes for an object of {size}")
        except BaseException:
            os.close(fd)
            raise
        return store.adopt(fd, done)

    def open_object(self, digest: bytes) -> int:
        """A verified descriptor of the object, to be closed by the caller."""
        return self.objects.open(digest)

    def read_object(self, digest: bytes) -> bytes:
        with os.fdopen(self.open_object(digest), "rb") as file:
            return file.read()

    def write_stream(self, content_id: str, data: bytes) -> bytes:
        """Store the split stream `data` and publish it as `streams/<content id>`."""
        digest = self.ensure_object(data)
        self.publish_streams({content_id: digest})
        return digest

    def publish_streams(self, streams: dict[str, bytes]) -> None:
        """Link stored split streams under their content ids, in order, after one sync."""
        self.sync()
        for content_id, digest in streams.items():
            self._link(f"streams/{_checked(content_id)}", f"objects/{object_path(digest)}")

    def find_stream(self, content_id: str) -> bytes | None:
        """The digest of the split stream `content_id`, or None."""
        return self._read_link(f"streams/{_checked(content_id)}")

    def read_stream(self, content_id: str) -> bytes:
        digest = self.find_stream(content_id)
        if digest is None:
            raise NotFoundError(f"there is no stream {content_id} in {self.path}")
        return self.read_object(digest)

    def write_image(self, data: bytes, name: str | None = None) -> bytes:
        """Store an EROFS image, publish it, under `name` too, and return its digest."""
        digest = self.ensure_object(data)
        self.sync()
        self._link(f"images/{digest.hex()}", f"objects/{object_path(digest)}")
        if name is not None:
            if any(part in ("", ".", "..") for part in name.split("/")):
                raise BootcError(f"{name!r} is no valid image name")
            self._link(f"images/refs/{name}", f"images/{digest.hex()}")
        return digest

    def has_image(self, digest: bytes) -> bool:
        return self._read_link(f"images/{digest.hex()}") is not None

    def find_image(self, name: str) -> bytes | None:
        """The digest of the image that `name`, hexadecimal or a reference, stands for."""
        found = self._read_link(f"images/{name}") if "/" not in name else None
        if found is not None or name in (".", "..", ""):
            return found
        try:
            target = os.readlink(f"images/refs/{name}", dir_fd=self.fd)
        except OSError:
            return None
        return _parse_hex(target.rsplit("/", 1)[-1], self.algorithm)

    def image_refs(self) -> Iterator[tuple[str, str]]:
        """(name, hexadecimal digest) of the named images, sorted by name."""
        yield from _walk_links(self.fd, "images/refs")

    def tag(self, content_id: str, name: str) -> None:
        """Make the tag `name` lead to the stream `content_id`, which must exist."""
        if self.find_stream(content_id) is None:
            raise NotFoundError(f"there is no stream {content_id} in {self.path}")
        self.sync()
        self._link(f"streams/refs/{OCI_REFS}/{escape_tag(name)}", f"streams/{content_id}")

    def untag(self, name: str) -> None:
        folder = f"streams/refs/{OCI_REFS}"
        try:
            os.unlink(f"{folder}/{escape_tag(name)}", dir_fd=self.fd)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no tag {name} in {self.path}") from error
        fs.sync_directory(folder, dir_fd=self.fd)

    def find_tag(self, name: str) -> str | None:
        """The content id that a tag leads to, or None."""
        try:
            target = os.readlink(f"streams/refs/{OCI_REFS}/{escape_tag(name)}", dir_fd=self.fd)
        except FileNotFoundError:
            return None
        return target.rsplit("/", 1)[-1]

    def tags(self) -> Iterator[tuple[str, str]]:
        """(tag, content id), sorted by tag."""
        found = _walk_links(self.fd, f"streams/refs/{OCI_REFS}")
        yield from sorted((unescape_tag(name), content_id) for name, content_id in found)

    def sync(self) -> None:
        """Bring to the disk what was written since the last time."""
        if self._dirty:
            libc.syncfs(self.fd)
            self._dirty = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until nobody else has the repository open, and keep everybody out."""
        lock(self.fd, exclusive=True)
        try:
            yield
        finally:
            lock(self.fd)

    def _make_directory(self, path: str) -> None:
        """Make `path` and its parents, durably, where they don't exist."""
        try:
            os.mkdir(path, 0o755, dir_fd=self.fd)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_directory(os.path.dirname(path))
            os.mkdir(path, 0o755, dir_fd=self.fd)
        fs.sync_directory(os.path.dirname(path) or ".", dir_fd=self.fd)

    def _link(self, path: str, target: str) -> None:
        """Publish the link `path`; both names are relative to the repository."""
        folder = os.path.dirname(path)
        self._make_directory(folder)
        try:
            fs.replace_symlink(os.path.relpath(target, folder), path, dir_fd=self.fd)
        except OSError as error:
            raise BootcError(
                f"cannot make the link {self.path}/{path}: {error.strerror}"
            ) from error

    def _read_link(self, path: str) -> bytes | None:
        """The digest in the target of a link to an object."""
        try:
            target = os.readlink(path, dir_fd=self.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG):
                return None
            raise
        digest = _parse_hex("".join(target.split("/")[-2:]), self.algorithm)
        if digest is None:
            raise FormatError(f"{self.path}/{path}", None, f"does not lead to an object: {target}")
        return digest


def _checked(content_id: str) -> str:
    if not content_id or "/" in content_id or "\0" in content_id or content_id in (".", ".."):
        raise BootcError(f"{content_id!r} is no valid content identifier")
    return content_id


def _parse_hex(text: str, algorithm: Algorithm) -> bytes | None:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) == algorithm.size and len(text) == 2 * len(digest) else None


def _walk_links(fd: int, folder: str) -> Iterator[tuple[str, str]]:
    """(path below `folder`, last component of the target) of every symlink, sorted."""
    try:
        with fs.open_directory(folder, dir_fd=fd) as here:
            names = sorted(os.listdir(here))
    except FileNotFoundError:
        return
    for name in names:
        path = f"{folder}/{name}"
        try:
            yield name, os.readlink(path, dir_fd=fd).rsplit("/", 1)[-1]
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            for below, target in _walk_links(fd, path):
                yield f"{name}/{below}", target


def _initialize(path: str, metadata: Metadata, *, secure: bool) -> None:
    """Write meta.json, or check that the one there says the same."""
    with fs.open_directory(path) as fd:
        try:
            _write_metadata(fd, metadata, secure=secure)
            os.fsync(fd)
        except FileExistsError:
            _check_same(fd, path, metadata)
        except OSError as error:
            if secure and fsverity.is_unsupported(error):
                raise BootcError(
                    f"{path}: the file system has no fs-verity",
                    hint="use ext4 with `tune2fs -O verity`, or btrfs, or --insecure",
                ) from error
            raise BootcError(f"cannot write {path}/meta.json: {error.strerror}") from error


def _write_metadata(fd: int, metadata: Metadata, *, secure: bool) -> None:
    """Write meta.json, never over an existing one (`FileExistsError`)."""
    file = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=fd)
    try:
        fs.write_all(file, metadata.to_json().encode())
        os.fsync(file)
        reading = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(file)
        file = reading
        if "meta.json" in os.listdir(fd):
            raise FileExistsError(errno.EEXIST, "exists", "meta.json")
        if secure:
            fsverity.enable(file, metadata.algorithm.kernel)
        libc.link_fd(file, fd, "meta.json")
    finally:
        os.close(file)


def _load_metadata(fd: int, path: str) -> tuple[Metadata, bool]:
    source = os.path.join(path, "meta.json")
    try:
        file = os.open("meta.json", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError as error:
        if "objects" in os.listdir(fd):
            raise BootcError(
                f"{path} is a repository of an old format without meta.json"
            ) from error
        raise BootcError(
            f"{path} is not a composefs repository",
            hint=f"make it one with `cfsctl --repo {path} init`",
        ) from error
    with os.fdopen(file, "rb") as reader:
        measured = fsverity.measure(reader.fileno())
        metadata = read_metadata(reader.read(), source)
    if measured is not None and measured[0] != metadata.algorithm.kernel:
        raise FormatError(source, ".algorithm", "is not the one of the file's own fs-verity")
    return metadata, measured is not None


def _check_same(fd: int, path: str, wanted: Metadata) -> None:
    found, _ = _load_metadata(fd, path)
    if found != wanted:
        raise BootcError(
            f"{path} is already a repository with {found.algorithm.identifier} and EROFS version "
            f"{found.erofs_default}",
            hint="open it as it is, or remove meta.json to make it anew",
        )
