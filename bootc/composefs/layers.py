# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A layer's way from a blob to a split stream and objects.

The blob is read once: hashed as it is stored, unpacked (by a thread of its own), hashed again, cut
into headers (which stay inline) and contents (which become objects, written by the pool's threads
while the next are read). The members are kept unless there are very many, so that the tree can be
merged without reading the layer again. The way back is in `stored_layers`.

What a hostile layer can cost is limited: it may not unpack to more than `unpacked_max` bytes, and
no more than `INLINE_RUN_MAX` bytes may follow each other without a content, as they are kept in
memory until their number is known. Contents are streamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from bootc import fs
from bootc.composefs.blobs import CHUNK, HashingReader, Readable, decompressed, reading_ahead
from bootc.composefs.digest import Algorithm, Buffer
from bootc.composefs.splitstream import OCI_BLOB, OCI_LAYER, SplitStreamWriter
from bootc.composefs.writers import Batch, Item, WriterPool
from bootc.errors import FormatError
from bootc.oci.model import Compression
from bootc.oci.tarstream import BLOCK, Entry, read_tar
from bootc.records import dataclass
from bootc.tree import Leaf

SPOOL = 4 << 20
"""Bytes: a larger content goes straight into its file instead of through memory."""
BATCH_SIZE = 512 << 10
BATCH_ITEMS = 24
OUTSTANDING_MAX = 32 << 20
"""Bytes of contents that may wait for the workers in memory."""
FILES_MAX = 96
"""Open files that may wait for them: several layers are read at once, and 1024 is a usual limit."""
COPIED_BELOW = 16 << 10
"""Bytes: a larger content in memory is a view of what was read, which saves a sixth of the parser's
CPU time. A smaller one is copied, so that it doesn't keep what lies around it."""
INLINE_RUN_MAX = 256 << 20
ENTRIES_KEPT = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedLayer:
    """A layer whose contents are stored: its split stream's bytes (not stored yet), its members
    (None when they were too many to keep), and how many bytes lie in the split stream itself."""

    stream: bytes
    entries: tuple[Entry, ...] | None = None
    inlined: int = 0


class ImportInput:
    """The parser's view of a tar that is being imported; see `tarstream.TarInput`."""

    def __init__(
        self,
        stream: Readable,
        pool: WriterPool,
        writer: SplitStreamWriter,
        source: str,
        unpacked_max: int,
    ) -> None:
        self.inlined = 0
        self._max = unpacked_max
        self._run = 0
        self._stream = stream
        self._pool = pool
        self._writer = writer
        self._source = source
        self._data = b""
        self._at = 0
        self._inline_from = 0
        self._base = 0
        self._batch = Batch()
        self._segments: list[bytes | Item] = []
        self._pending: deque[tuple[Batch, list[bytes | Item]]] = deque()
        self._outstanding = 0
        self._files = 0

    def offset(self) -> int:
        return self._base + self._at

    def header(self) -> bytes:
        end = self._at + BLOCK
        if end > len(self._data):
            if self._at == len(self._data) and not self._next_piece():
                return b""
            return self._inline_across(BLOCK)
        block = self._data[self._at : end]
        self._at = end
        return block

    def inline(self, size: int) -> bytes:
        whole = size + -size % BLOCK
        if self._at + whole > len(self._data):
            return self._inline_across(whole)[:size]
        content = self._data[self._at : self._at + size]
        self._at += whole
        return content

    def external(self, leaf: Leaf, size: int) -> None:
        end = self._at + size
        if self._base + end > self._max:
            raise self._too_large()
        self._cut()
        self._run = 0
        if end <= len(self._data):
            if size < COPIED_BELOW:
                item = Item(leaf, size, self._data[self._at : end])
            else:
                item = Item(leaf, size, memoryview(self._data)[self._at : end])
            self._at = end
        elif size <= SPOOL:
            item = Item(leaf, size, self._across(size))
        else:
            item = Item(leaf, size, fd=self._spool(size))
        self._put(item)

    def _put(self, item: Item) -> None:
        """The content that has just been read; its padding follows."""
        self._inline_from = self._at
        size = item.size
        self._segments.append(item)
        self._batch.items.append(item)
        self._batch.size += size
        self._batch.memory += len(item.data)
        self._batch.files += item.files
        if self._batch.size >= BATCH_SIZE or len(self._batch.items) >= BATCH_ITEMS:
            self._submit()
        padding = -size % BLOCK
        if padding:
            if self._at + padding > len(self._data):
                self._inline_across(padding)
            else:
                self._at += padding

    def drain(self) -> None:
        self._at = len(self._data)
        while self._next_piece():
            self._at = len(self._data)

    def store_all(self) -> tuple[Entry, ...] | None:
        """Store what the tar has; its entries, unless they are too many to keep.

        When this returns all contents are stored and the split stream has the rest. When it raises,
        contents that no worker has got are given up.
        """
        entries: list[Entry] | None = []
        try:
            for entry in read_tar(self, self._source):
                if entries is not None:
                    entries.append(entry)
                    if len(entries) > ENTRIES_KEPT:
                        entries = None
            self._cut()
            self._submit()
            while self._pending:
                self._complete()
        except BaseException:
            self._batch.discard(self._pool.store)
            raise
        return None if entries is None else tuple(entries)

    def _too_early(self) -> FormatError:
        return FormatError(self._source, self._base + len(self._data), "the tar ends too early")

    def _too_large(self) -> FormatError:
        return FormatError(
            self._source,
            self._base + self._at,
            f"the layer unpacks to more than {self._max} bytes",
            hint="use a larger file system; or, if you trust the image, --layer-max",
        )

    def _cut(self) -> None:
        """End the piece of inline data that has been read."""
        if self._at > self._inline_from:
            self._segments.append(self._data[self._inline_from : self._at])
            self._batch.memory += self._at - self._inline_from
            self._run += self._at - self._inline_from
            if self._run > INLINE_RUN_MAX:
                raise FormatError(
                    self._source,
                    self._base + self._at,
                    f"more than {INLINE_RUN_MAX >> 20} MiB follow each other without a content",
                )
        self._inline_from = self._at

    def _next_piece(self) -> bool:
        """Go on to the next piece of the stream, as this one is consumed; False at the end."""
        self._cut()
        self._base += len(self._data)
        self._data = self._stream.read(CHUNK)
        self._at = self._inline_from = 0
        if self._base + len(self._data) > self._max:
            raise self._too_large()
        return bool(self._data)

    def _across(self, size: int) -> bytes:
        """The next `size` bytes of a content, which don't all lie in this piece."""
        parts: list[Buffer] = []
        left = size
        while left:
            if self._at == len(self._data) and not self._next_piece():
                raise self._too_early()
            part = memoryview(self._data)[self._at : self._at + left]
            parts.append(part)
            left -= len(part)
            self._at += len(part)
            self._inline_from = self._at
        return b"".join(parts)

    def _inline_across(self, size: int) -> bytes:
        """The next `size` bytes, which are inline and don't all lie in this piece."""
        parts: list[Buffer] = []
        left = size
        while left:
            if self._at == len(self._data) and not self._next_piece():
                raise self._too_early()
            part = self._data[self._at : self._at + left]
            parts.append(part)
            left -= len(part)
            self._at += len(part)
        return b"".join(parts)

    def _spool(self, size: int) -> int:
        """Write the next `size` bytes into an unnamed file and return its descriptor."""
        fd = self._pool.store.create()
        try:
            left = size
            while left:
                if self._at == len(self._data) and not self._next_piece():
                    raise self._too_early()
                piece = memoryview(self._data)[self._at : self._at + left]
                fs.write_all(fd, piece)
                left -= len(piece)
                self._at += len(piece)
                self._inline_from = self._at
        except BaseException:
            self._pool.store.discard(fd)
            raise
        return fd

    def _submit(self) -> None:
        batch, segments = self._batch, self._segments
        self._batch, self._segments = Batch(), []
        self._pending.append((batch, segments))
        self._outstanding += batch.memory
        self._files += batch.files
        self._pool.submit(batch)
        while self._pending and (
            self._outstanding > OUTSTANDING_MAX
            or self._files > FILES_MAX
            or self._pool.is_ready(self._pending[0][0])
        ):
            self._complete()

    def _complete(self) -> None:
        """Wait for the oldest batch and write its part of the split stream."""
        batch, segments = self._pending.popleft()
        self._pool.finish(batch)
        self._outstanding -= batch.memory
        self._files -= batch.files
        for segment in segments:
            if isinstance(segment, bytes):
                self.inlined += len(segment)
                self._writer.inline(segment)
            else:
                self._writer.external(segment.digest, segment.size)


def import_layer(
    blob: BinaryIO,
    pool: WriterPool,
    algorithm: Algorithm,
    *,
    digest: str,
    diff_id: str,
    size: int | None,
    compression: Compression,
    unpacked_max: int,
    on_bytes: Callable[[int], None] | None = None,
) -> ImportedLayer:
    """Store a layer's contents. The blob's digest, its `size` if that is known, and the diff id
    are verified before this returns; until then nothing but objects is in the repository."""
    source = f"layer {digest}"
    plain = compression is Compression.NONE
    expected = [digest, diff_id] if plain else [digest]
    outer = HashingReader(blob, expected, source, size=size, on_bytes=on_bytes)
    try:
        if plain:
            return _import_tar(outer, pool, algorithm, source, unpacked_max)
        with reading_ahead(decompressed(outer, compression, source)) as ahead:
            inner = HashingReader(ahead, [diff_id], f"{source}, decompressed")
            found = _import_tar(inner, pool, algorithm, source, unpacked_max)
    except FormatError:
        # A damaged blob explains more than what its content looks like.
        outer.verify()
        raise
    outer.verify()
    return found


def _import_tar(
    stream: HashingReader, pool: WriterPool, algorithm: Algorithm, source: str, unpacked_max: int
) -> ImportedLayer:
    writer = SplitStreamWriter(algorithm, OCI_LAYER)
    tar = ImportInput(stream, pool, writer, source, unpacked_max)
    entries = tar.store_all()
    stream.verify()
    return ImportedLayer(stream=writer.finish(), entries=entries, inlined=tar.inlined)


def import_blob(
    blob: BinaryIO,
    pool: WriterPool,
    algorithm: Algorithm,
    *,
    digest: str,
    size: int,
    on_bytes: Callable[[int], None] | None = None,
) -> ImportedLayer:
    """Store a blob of an artifact as one object; its digest and size are verified."""
    source = f"blob {digest}"
    reader = HashingReader(blob, [digest], source, size=size, on_bytes=on_bytes)
    fd = pool.store.create()
    try:
        while piece := reader.read(CHUNK):
            fs.write_all(fd, piece)
        reader.verify()
    except BaseException:
        pool.store.discard(fd)
        raise
    stored = pool.store.adopt(fd, size)
    writer = SplitStreamWriter(algorithm, OCI_BLOB)
    writer.external(stored, size)
    return ImportedLayer(stream=writer.finish())
