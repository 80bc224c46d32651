# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A layer of a store as pieces of its tar: bytes, and files that lie in folders.

A content is opened below the layer's own folder or, where that has it not or only as a metacopy
stub of overlayfs, below that of the first layer beneath which has. No symbolic link is followed,
nothing outside of the folder or on another file system is reached. Its size must be what tar-split
says.

`read_tar` checks the CRC-64 of each content as well. It costs more than all else, so whoever has a
digest of the whole tar to compare uses `pieces`, and calls `verify_contents` when that digest is
wrong: it tells which file is.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from bootc.errors import BootcError, FormatError
from bootc.linux import libc
from bootc.storage.crc64 import crc64
from bootc.storage.opener import Opener
from bootc.storage.store import Store, StoredLayer, Unsupported
from bootc.storage.tarsplit import Member, read_tarsplit

CHUNK = 1 << 20
_RESOLVE = (
    libc.RESOLVE_BENEATH
    | libc.RESOLVE_NO_SYMLINKS
    | libc.RESOLVE_NO_MAGICLINKS
    | libc.RESOLVE_NO_XDEV
)
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_OVERLAY_ATTRIBUTES = ("trusted.overlay.", "user.overlay.")


@dataclass(frozen=True, slots=True)
class ContentFile:
    """A content: `size` bytes, all of the file `name` in directory number `index`.

    `fd` is open for reading, and the receiver's to close; `stat` is what it was when it was opened.
    """

    name: bytes
    size: int
    crc: int
    index: int
    fd: int
    line: int
    stat: os.stat_result


class LayerReader:
    """Reads one layer; made by `open_layer`. `pieces` and what builds on it may be used once."""

    def __init__(
        self,
        layer: StoredLayer,
        stores: Sequence[Store],
        opener: Opener,
        stack: ExitStack,
        tarsplit: BinaryIO,
    ) -> None:
        self.id = layer.record.id
        self.diff_digest = layer.record.diff_digest
        self.diff_size = layer.record.diff_size
        self.source = f"{layer.store.root}: layer {self.id[:12]}"
        self._layer = layer
        self._stores = stores
        self._opener = opener
        self._stack = stack
        self._tarsplit = tarsplit
        self._split_name = _tarsplit_path(layer)
        self._directories = [self._open_directory(layer.store.diff(self.id))]
        self._waiting: list[bytes] | None = None

    @property
    def directories(self) -> tuple[int, ...]:
        """Descriptors of the layer's folder and of those below it: what `index` counts."""
        while self._next_directory():
            pass
        return tuple(self._directories)

    def pieces(self) -> Iterator[bytes | ContentFile]:
        """The tar, piece by piece."""
        for piece in read_tarsplit(self._tarsplit, self._split_name):
            yield piece if isinstance(piece, bytes) else self._open(piece)

    def verify_contents(self) -> None:
        """Read the layer again; raise `FormatError` if a content has another CRC than it should."""
        self._tarsplit.seek(0)
        for _ in self.read_tar():
            pass

    def read_content(self, file: ContentFile) -> bytes:
        """A content as a whole; only for those that fit into memory."""
        data = os.pread(file.fd, file.size + 1, 0)
        while len(data) < file.size:
            more = os.pread(file.fd, file.size - len(data), len(data))
            if not more:
                break
            data += more
        if len(data) != file.size:
            raise self._bad_size(file.name, len(data), file.size)
        return data

    def read_chunks(self, file: ContentFile) -> Iterator[bytes]:
        """A content in pieces."""
        at = 0
        while at < file.size:
            data = os.pread(file.fd, min(CHUNK, file.size - at), at)
            if not data:
                raise self._bad_size(file.name, at, file.size)
            at += len(data)
            yield data

    def read_tar(self) -> Generator[bytes, None, None]:
        """The tar in pieces of bounded size. Contents are verified by their CRC."""
        for piece in self.pieces():
            if isinstance(piece, bytes):
                yield piece
                continue
            crc = 0
            try:
                for chunk in self.read_chunks(piece):
                    crc = crc64(chunk, crc)
                    yield chunk
            finally:
                os.close(piece.fd)
            if crc != piece.crc:
                raise FormatError(
                    self.source,
                    os.fsdecode(piece.name),
                    "the file was changed: it has another CRC-64 than tar-split says",
                    hint="the image is damaged: remove it and pull it again with podman",
                )

    # -- Contents

    def _open(self, member: Member) -> ContentFile:
        name = member.name
        index = 0
        while index < len(self._directories) or self._next_directory():
            fd = self._open_in(index, name)
            if fd is not None:
                try:
                    found = os.fstat(fd)
                    if not stat.S_ISREG(found.st_mode):
                        raise FormatError(self.source, os.fsdecode(name), "is no regular file")
                    redirect = _stub(fd, name) if not found.st_blocks else None
                    if redirect is None:
                        if found.st_size != member.size:
                            raise self._bad_size(name, found.st_size, member.size)
                        return ContentFile(
                            name, member.size, member.crc, index, fd, member.line, found
                        )
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)
                name = redirect
            index += 1
        raise FormatError(
            self.source,
            os.fsdecode(name),
            "the file is missing",
            hint="the image is damaged: remove it and pull it again with podman",
        )

    def _bad_size(self, name: bytes, found: int, wanted: int) -> FormatError:
        return FormatError(
            self.source,
            os.fsdecode(name),
            f"the file has {found} bytes, tar-split says {wanted}",
            hint="the image is damaged: remove it and pull it again with podman",
        )

    def _open_in(self, index: int, name: bytes) -> int | None:
        directory = self._directories[index]
        try:
            return self._opener.open_beneath(directory, name, _FLAGS, _RESOLVE)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            where = os.fsdecode(name)
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                problem = "leads through a symbolic link, or through what is no directory"
            elif error.errno == errno.EXDEV:
                problem = "leads out of the layer"
            else:
                problem = f"cannot be opened: {error.strerror}"
            raise FormatError(self.source, where, problem) from None

    def _next_directory(self) -> bool:
        """Open the folder of the next layer beneath; False when there is none."""
        if self._waiting is None:
            self._waiting = self._layer.store.lower_links(self.id)[::-1]
        if not self._waiting:
            return False
        short = self._waiting.pop()
        for store in dict.fromkeys((self._layer.store, *self._stores)):
            layer = store.linked(short)
            if layer is not None:
                self._directories.append(self._open_directory(store.diff(layer)))
                return True
        raise BootcError(
            f"{self.source}: the layer below it, l/{short.decode()}, is missing",
            hint="the image is damaged: remove it and pull it again with podman",
        )

    def _open_directory(self, path: str) -> int:
        try:
            fd = self._opener.open_path(path, _DIRECTORY)
        except OSError as error:
            raise BootcError(
                f"{self.source}: cannot open {path}: {error.strerror}",
                hint="the image is damaged: remove it and pull it again with podman"
                if error.errno == errno.ENOENT
                else None,
            ) from error
        self._stack.callback(os.close, fd)
        return fd


def _stub(fd: int, name: bytes) -> bytes | None:
    """Where below the content of a metacopy stub lies, or None if the file is none."""
    for prefix in _OVERLAY_ATTRIBUTES:
        try:
            os.getxattr(fd, f"{prefix}metacopy")
        except OSError:
            continue
        try:
            target = os.getxattr(fd, f"{prefix}redirect")
        except OSError:
            return name
        parent = name.rpartition(b"/")[0]
        path = target if target.startswith(b"/") else parent + b"/" + target
        return path.strip(b"/")
    return None


def _tarsplit_path(layer: StoredLayer) -> str:
    return layer.store.path("overlay-layers", f"{layer.record.id}.tar-split.gz")


def need_tarsplit(layer: StoredLayer) -> None:
    """Raise `Unsupported` for a layer that `open_layer` is going to raise it for."""
    if not os.path.exists(path := _tarsplit_path(layer)):
        raise Unsupported(f"{path} is missing: the layer's tar cannot be built")


@contextmanager
def open_layer(
    layer: StoredLayer, stores: Sequence[Store], opener: Opener
) -> Iterator[LayerReader]:
    """Read a layer; hold its store's `layers_locked` meanwhile. `stores` are all that may matter.

    Raises `Unsupported` for a layer that has no tar-split.
    """
    path = _tarsplit_path(layer)
    with ExitStack() as stack:
        need_tarsplit(layer)
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise BootcError(f"cannot read {path}: {error.strerror}") from error
        yield LayerReader(layer, stores, opener, stack, file)


class TarStream(io.RawIOBase):
    """`LayerReader.read_tar` as a file that is read once from its beginning."""

    def __init__(self, reader: LayerReader) -> None:
        super().__init__()
        self._pieces = reader.read_tar()
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return b"".join([bytes(self._left), *self._pieces])
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = memoryview(piece)
        found = bytes(self._left[:size])
        self._left = self._left[size:]
        return found

    def close(self) -> None:
        if not self.closed:
            self._pieces.close()
        super().close()
