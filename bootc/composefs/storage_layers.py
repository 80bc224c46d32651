# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A layer's way from containers-storage into the repository, without making its tar.

The headers come from tar-split, each content from the file that podman unpacked. A content becomes
an object, in this order, by

1. shared extents (reflink); it is the clone that is then read and verified, or what is proved to be
   the same (`clones`);
2. a hard link, which never changes the file: not where verity would have to be switched on for it
   (unless it is on), and only for files that everybody may read, nobody but root may write and that
   have neither set-id bits nor capabilities, because a link shares all that, and an object can be
   reached by everybody;
3. a copy.

All is read once and hashed as the tar that it would be; what has not the digest `diff_id` is not
published. Then the CRC-64 that tar-split has of each file tells which one was changed. With
`zerocopy` a content that could only be copied is an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bootc.composefs.clones import clone_file
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream import StreamWriter
from bootc.composefs.layers import (
    SPOOL,
    ImportedLayer,
    ImportInput,
)
from bootc.composefs.objects import Route
from bootc.composefs.splitstream import OCI_LAYER, SplitStreamWriter
from bootc.composefs.writers import Batch, Item, WriterPool
from bootc.errors import BootcError, FormatError
from bootc.oci.model import digest_hasher
from bootc.storage.layer import ContentFile, LayerReader
from bootc.tree import Leaf

if TYPE_CHECKING:
    from hashlib import _Hash

_WRONG_MODE = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH
_READABLE = 0o444
_REPORT = 256 << 10
"""Bytes after which progress is told: half of all contents are below 4 KiB."""


class _Pieces:
    """The tar as a stream, but a content that comes next may be taken as the file that it is."""

    def __init__(self, reader: LayerReader, diff_id: str, on_bytes: Callable[[int], None]) -> None:
        self.reader = reader
        self.hasher: _Hash = digest_hasher(diff_id)
        self._pieces = reader.pieces()
        self._next: bytes | ContentFile | None = None
        self._chunks: Iterator[bytes] | None = None
        self._on_bytes = on_bytes
        self._uncounted = 0

    def close(self) -> None:
        if isinstance(self._next, ContentFile):
            os.close(self._next.fd)
            self._next = None

    def count(self, data: bytes) -> bytes:
        """Take note of the next bytes of the tar."""
        self.hasher.update(data)
        self._uncounted += len(data)
        if self._uncounted >= _REPORT:
            self._on_bytes(self._uncounted)
            self._uncounted = 0
        return data

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, which never begin before and end within a content."""
        while True:
            if self._chunks is not None:
                if (piece := next(self._chunks, None)) is not None:
                    return self.count(piece)
                self._chunks = None
                self.close()
            found = self._advance()
            if found is None:
                return b""
            if isinstance(found, bytes):
                self._next = None
                return self.count(found)
            self._chunks = self.reader.read_chunks(found)

    def reading(self, file: ContentFile) -> Callable[[int], bytes]:
        """What reads the content from the descriptor that it is called with and takes note of it;
        it returns what is small. Called again, it forgets what it read before."""
        before: _Hash | None = None

        def read(fd: int) -> bytes:
            nonlocal before
            if before is None:
                before = self.hasher.copy()
            else:
                self.hasher = before.copy()
            found = replace(file, fd=fd)
            if file.size <= SPOOL:
                return self.count(self.reader.read_content(found))
            for chunk in self.reader.read_chunks(found):
                self.count(chunk)
            return b""

        return read

    def take(self, size: int) -> ContentFile | None:
        """The content that comes next, if it has this size; its descriptor is the caller's."""
        if self._chunks is not None:
            return None
        found = self._advance()
        if not isinstance(found, ContentFile) or found.size != size:
            return None
        self._next = None
        return found

    def _advance(self) -> bytes | ContentFile | None:
        if self._next is None:
            self._next = next(self._pieces, None)
        return self._next


class _StorageInput(ImportInput):
    """The parser's view of a stored layer: large contents are files."""

    def __init__(
        self,
        pieces: _Pieces,
        pool: WriterPool,
        writer: SplitStreamWriter,
        source: str,
        unpacked_max: int,
        *,
        zerocopy: bool,
    ) -> None:
        super().__init__(pieces, pool, writer, source, unpacked_max)
        self._pieces = pieces
        self._zerocopy = zerocopy

    def external(self, leaf: Leaf, size: int) -> None:
        file = self._pieces.take(size) if self._at == len(self._data) else None
        if file is None:
            super().external(leaf, size)
            return
        item: Item | None = None
        try:
            if self._base + self._at + size > self._max:
                raise self._too_large()
            self._cut()
            self._run = 0
            item = self._item(leaf, file)
        finally:
            if item is None or item.fd != file.fd:
                os.close(file.fd)
        self._base += len(self._data) + size
        self._data, self._at = b"", 0
        self._put(item)

    def _item(self, leaf: Leaf, file: ContentFile) -> Item:
        """The content, read and verified, in the cheapest way that is allowed; it may keep the
        descriptor."""
        store, pieces = self._pool.store, self._pieces
        item = clone_file(store, leaf, file.fd, file.size, pieces.reading(file))
        if item is not None:
            if os.fstat(item.fd).st_size != file.size:
                Batch(items=[item]).discard(store)
                raise FormatError(pieces.reader.source, os.fsdecode(file.name), "has changed")
            return item
        linkable = _is_harmless(file) and store.can_link(file.fd)
        if self._zerocopy:
            if linkable:
                for chunk in pieces.reader.read_chunks(file):
                    pieces.count(chunk)
                if (digest := store.link(file.fd, file.size)) is not None:
                    return Item(leaf, file.size, digest=digest)
            raise BootcError(
                f"{pieces.reader.source}: {os.fsdecode(file.name)} can be neither reflinked nor"
                " safely hard-linked into the repository",
                hint="leave --local-fetch=zerocopy out, or use one file system with reflink",
            )
        small = file.size <= SPOOL
        data = pieces.count(pieces.reader.read_content(file)) if small else b""
        if linkable:
            if not small:
                for chunk in pieces.reader.read_chunks(file):
                    pieces.count(chunk)
            return Item(leaf, file.size, data, fd=file.fd, route=Route.HARDLINKED)
        if small:
            return Item(leaf, file.size, data, route=Route.COPIED)
        return Item(leaf, file.size, fd=self._copy(file), route=Route.COPIED)

    def _copy(self, file: ContentFile) -> int:
        """Copy a large content; what is written is what was verified."""
        store = self._pool.store
        fd = store.create()
        try:
            for chunk in self._pieces.reader.read_chunks(file):
                view = memoryview(self._pieces.count(chunk))
                while view:
                    view = view[os.write(fd, view) :]
        except BaseException:
            store.discard(fd)
            raise
        return fd


def _is_harmless(file: ContentFile) -> bool:
    """Whether a hard link to the file may be an object; see the module's text."""
    found = file.stat
    if found.st_mode & _WRONG_MODE or found.st_mode & _READABLE != _READABLE:
        return False
    if found.st_uid not in (0, os.geteuid()):
        return False
    try:
        os.getxattr(file.fd, "security.capability")
    except OSError:
        return True
    return False


def import_stored_layer(
    reader: LayerReader,
    pool: WriterPool,
    algorithm: Algorithm,
    *,
    diff_id: str,
    unpacked_max: int,
    zerocopy: bool = False,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> ImportedLayer:
    """Store a layer's contents; the diff id is verified before this returns. Until then nothing
    but objects is in the repository. Raises `FormatError`."""
    source = reader.source
    writer = SplitStreamWriter(algorithm, OCI_LAYER)
    pieces = _Pieces(reader, diff_id, on_bytes)
    tar = _StorageInput(pieces, pool, writer, source, unpacked_max, zerocopy=zerocopy)
    try:
        entries = tar.store_all()
    finally:
        pieces.close()
    found = f"{pieces.hasher.name}:{pieces.hasher.hexdigest()}"
    if found != diff_id:
        reader.verify_contents()
        raise FormatError(
            source,
            None,
            f"has the digest {found}, expected {diff_id}",
            hint="the image is damaged: remove it and pull it again with podman",
        )
    return ImportedLayer(stream=writer.finish(), entries=entries, inlined=tar.inlined)


def write_stored_layer(
    reader: LayerReader,
    writer: StreamWriter,
    slots: Sequence[int],
    *,
    may_read_all: bool = False,
) -> None:
    """Give a layer away as a splitdirfdstream, without copying what the receiver can open itself.

    `slots[n]` is the number that the receiver knows `reader.directories[n]` by. Files that not
    everybody may read travel in the stream, unless the receiver `may_read_all`, and so do those in
    folders that not everybody may enter. The receiver verifies the diff id. Raises `FormatError`,
    and `OSError` when the receiver went away.
    """
    open_to_all: dict[tuple[int, bytes], bool] = {}
    directories = reader.directories
    for piece in reader.pieces():
        if isinstance(piece, bytes):
            writer.metadata(piece)
            continue
        try:
            if may_read_all or _is_open_to_all(piece, directories, open_to_all):
                writer.file(piece.size, slots[piece.index], piece.name)
                continue
            for chunk in reader.read_chunks(piece):
                writer.inline(chunk)
        finally:
            os.close(piece.fd)
    writer.flush()


def _is_open_to_all(
    file: ContentFile, directories: Sequence[int], known: dict[tuple[int, bytes], bool]
) -> bool:
    """Whether anybody who has the directory's descriptor can open the file."""
    if not file.stat.st_mode & stat.S_IROTH:
        return False
    folder = file.name.rpartition(b"/")[0]
    while folder:
        key = (file.index, folder)
        if key not in known:
            try:
                found = os.stat(folder, dir_fd=directories[file.index], follow_symlinks=False)
            except PermissionError:
                known[key] = False
            else:
                known[key] = bool(found.st_mode & stat.S_IXOTH)
        if not known[key]:
            return False
        folder = folder.rpartition(b"/")[0]
    return bool(os.fstat(directories[file.index]).st_mode & stat.S_IXOTH)
