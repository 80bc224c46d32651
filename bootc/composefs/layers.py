# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A layer's way from a blob to a split stream and objects, and back from there to tar members.

The blob is read once: hashed as it is stored, decompressed, hashed again, cut into headers (which
stay inline) and contents (which become objects, written by the pool's threads while the next are
read). The members are kept, so that the tree can be merged without reading the layer again.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import zstandard

from bootc import fs
from bootc.composefs.digest import Algorithm
from bootc.composefs.splitstream import OCI_LAYER, SplitStream, SplitStreamWriter
from bootc.composefs.writers import Batch, Item, WriterPool
from bootc.errors import FormatError
from bootc.oci.model import Compression, digest_hasher
from bootc.oci.tarstream import BLOCK, Entry, read_tar
from bootc.tree import INLINE_MAX, External, Leaf

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20
SPOOL = 4 << 20
"""Bytes: a larger content goes straight into its file instead of through memory."""
BATCH_SIZE = 512 << 10
BATCH_ITEMS = 24
OUTSTANDING_MAX = 32 << 20
"""Bytes of contents that may wait for the workers."""


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class HashingReader:
    """Passes a stream through and computes its digests, one for each algorithm in `expected`."""

    def __init__(
        self,
        stream: _Readable,
        expected: list[str],
        source: str,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self._stream = stream
        self._expected = expected
        self._source = source
        self._on_bytes = on_bytes
        hashers = [digest_hasher(digest) for digest in expected]
        self._hashers: dict[str, _Hash] = {hasher.name: hasher for hasher in hashers}

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        if data:
            for hasher in self._hashers.values():
                hasher.update(data)
            if self._on_bytes is not None:
                self._on_bytes(len(data))
        return data

    def verify(self) -> None:
        """Read to the end and raise `FormatError` unless every expected digest was met."""
        while self.read(CHUNK):
            pass
        for digest in self._expected:
            hasher = self._hashers[digest.partition(":")[0]]
            found = f"{hasher.name}:{hasher.hexdigest()}"
            if found != digest:
                raise FormatError(
                    self._source,
                    None,
                    f"has the digest {found}, expected {digest}",
                    hint="the image is damaged: copy it or pull it again",
                )


class _Gunzip:
    """Decompresses gzip, of one or several members."""

    def __init__(self, stream: _Readable, source: str) -> None:
        self._stream = stream
        self._source = source
        self._inflate = zlib.decompressobj(wbits=31)
        self._input = b""
        self._fresh = True

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if not self._input:
                self._input = self._stream.read(CHUNK // 4)
                if not self._input:
                    if not self._fresh:
                        raise FormatError(self._source, None, "the gzip stream ends too early")
                    return b""
            try:
                data = self._inflate.decompress(self._input, max(size, CHUNK))
            except zlib.error as error:
                raise FormatError(self._source, None, f"bad gzip stream: {error}") from error
            if self._inflate.eof:
                self._input = self._inflate.unused_data
                self._inflate = zlib.decompressobj(wbits=31)
                self._fresh = True
            else:
                self._input = self._inflate.unconsumed_tail
                self._fresh = False
            if data:
                return data


class _Unzstd:
    """Decompresses zstd, of one or several frames."""

    def __init__(self, stream: _Readable, source: str) -> None:
        decompressor = zstandard.ZstdDecompressor()
        self._source = source
        self._reader = decompressor.stream_reader(
            cast(BinaryIO, stream),  # only its `read` is used
            read_across_frames=True,
        )

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._reader.read(size)
        except zstandard.ZstdError as error:
            raise FormatError(self._source, None, f"bad zstd stream: {error}") from error


def decompressed(stream: _Readable, compression: Compression, source: str) -> _Readable:
    match compression:
        case Compression.NONE:
            return stream
        case Compression.GZIP:
            return _Gunzip(stream, source)
        case Compression.ZSTD:
            return _Unzstd(stream, source)


class _ImportInput:
    """The parser's view of a tar that is being imported; see `tarstream.TarInput`."""

    def __init__(
        self, stream: _Readable, pool: WriterPool, writer: SplitStreamWriter, source: str
    ) -> None:
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

    def offset(self) -> int:
        return self._base + self._at

    def header(self) -> bytes:
        end = self._at + BLOCK
        if end > len(self._data):
            self._refill(BLOCK)
            end = self._at + BLOCK
            if end > len(self._data):
                if self._at == len(self._data):
                    return b""
                raise self._too_early()
        block = self._data[self._at : end]
        self._at = end
        return block

    def inline(self, size: int) -> bytes:
        whole = size + -size % BLOCK
        if self._at + whole > len(self._data):
            self._refill(whole)
            if self._at + whole > len(self._data):
                raise self._too_early()
        content = self._data[self._at : self._at + size]
        self._at += whole
        return content

    def external(self, leaf: Leaf, size: int) -> None:
        end = self._at + size
        self._cut()
        if end <= len(self._data):
            item = Item(leaf, size, self._data[self._at : end])
            self._at = end
        elif size <= SPOOL:
            self._refill(size)
            end = self._at + size
            if end > len(self._data):
                raise self._too_early()
            item = Item(leaf, size, self._data[self._at : end])
            self._at = end
        else:
            item = Item(leaf, size, fd=self._spool(size))
        self._inline_from = self._at
        self._segments.append(item)
        self._batch.items.append(item)
        self._batch.size += size
        if self._batch.size >= BATCH_SIZE or len(self._batch.items) >= BATCH_ITEMS:
            self._submit()
        padding = -size % BLOCK
        if padding:
            if self._at + padding > len(self._data):
                self._refill(padding)
                if self._at + padding > len(self._data):
                    raise self._too_early()
            self._at += padding

    def drain(self) -> None:
        while True:
            self._at = len(self._data)
            self._refill(1)
            if not self._data:
                return

    def finish(self) -> None:
        """Wait for all contents and give the rest to the split stream."""
        self._cut()
        self._submit()
        while self._pending:
            self._complete()

    def abort(self) -> None:
        """Give up contents that no worker has got."""
        self._batch.discard()

    def _too_early(self) -> FormatError:
        return FormatError(self._source, self._base + len(self._data), "the tar ends too early")

    def _cut(self) -> None:
        """End the piece of inline data that has been read."""
        if self._at > self._inline_from:
            self._segments.append(self._data[self._inline_from : self._at])
        self._inline_from = self._at

    def _refill(self, need: int) -> None:
        """Read until `need` bytes lie ahead, or up to the end of the stream."""
        self._cut()
        pieces = [self._data[self._at :]]
        have = len(pieces[0])
        while have < need:
            piece = self._stream.read(CHUNK)
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        self._base += self._at
        self._data = b"".join(pieces)
        self._at = self._inline_from = 0

    def _spool(self, size: int) -> int:
        """Write the next `size` bytes into an unnamed file and return its descriptor."""
        fd = self._pool.store.create()
        try:
            left = size
            while left:
                if self._at == len(self._data):
                    self._refill(1)
                    if not self._data:
                        raise self._too_early()
                piece = memoryview(self._data)[self._at : self._at + left]
                fs.write_all(fd, piece)
                left -= len(piece)
                self._at += len(piece)
                self._inline_from = self._at
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _submit(self) -> None:
        batch, segments = self._batch, self._segments
        self._batch, self._segments = Batch(), []
        self._pending.append((batch, segments))
        self._outstanding += batch.size
        self._pool.submit(batch)
        while self._pending and (
            self._outstanding > OUTSTANDING_MAX or self._pending[0][0].done.is_set()
        ):
            self._complete()

    def _complete(self) -> None:
        """Wait for the oldest batch and write its part of the split stream."""
        batch, segments = self._pending.popleft()
        batch.done.wait()
        if batch.error is not None:
            raise batch.error
        self._outstanding -= batch.size
        for segment in segments:
            if isinstance(segment, bytes):
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
    compression: Compression,
    on_bytes: Callable[[int], None] | None = None,
) -> tuple[bytes, list[Entry]]:
    """Store a layer's contents; return its split stream (not stored yet) and its members.

    Both the blob's digest and the diff_id are verified before this returns.
    """
    source = f"layer {digest}"
    if compression is Compression.NONE:
        outer = inner = HashingReader(blob, [digest, diff_id], source, on_bytes)
    else:
        outer = HashingReader(blob, [digest], source, on_bytes)
        inner = HashingReader(
            decompressed(outer, compression, source), [diff_id], f"{source}, decompressed"
        )
    writer = SplitStreamWriter(algorithm, OCI_LAYER)
    tar = _ImportInput(inner, pool, writer, source)
    try:
        entries = list(read_tar(tar, source))
        tar.finish()
    except FormatError:
        tar.abort()
        # A damaged blob explains more than what the parser stumbled over.
        outer.verify()
        raise
    except BaseException:
        tar.abort()
        raise
    inner.verify()
    outer.verify()
    return writer.finish(), entries


class _StoredInput:
    """The parser's view of a tar that lies in the repository; see `tarstream.TarInput`."""

    def __init__(self, stream: SplitStream) -> None:
        self._source = stream.source
        self._objects = stream.object_refs
        self._chunks = stream.chunks()
        self._data = b""
        self._at = 0
        self._base = 0

    def offset(self) -> int:
        return self._base + self._at

    def header(self) -> bytes:
        if self._at == len(self._data):
            self._advance()
            if not self._data:
                return b""
        return self.inline(BLOCK)

    def inline(self, size: int) -> bytes:
        whole = size + -size % BLOCK
        if self._at == len(self._data):
            self._advance()
        end = self._at + whole
        if end > len(self._data):
            raise FormatError(self._source, self.offset(), "the tar ends too early")
        content = self._data[self._at : self._at + size]
        self._at = end
        return content

    def external(self, leaf: Leaf, size: int) -> None:
        chunk = next(self._chunks, None) if self._at == len(self._data) else b""
        if not isinstance(chunk, int) or size <= INLINE_MAX:
            raise FormatError(self._source, self.offset(), "a content is not where it should be")
        leaf.content = External(size, self._objects[chunk])
        self._base += size
        if size % BLOCK:
            self._skip(BLOCK - size % BLOCK)

    def drain(self) -> None:
        self._at = len(self._data)
        for chunk in self._chunks:
            if isinstance(chunk, int):
                raise FormatError(self._source, self.offset(), "a content after the end")

    def _skip(self, size: int) -> None:
        if self._at == len(self._data):
            self._advance()
        self._at += size
        if self._at > len(self._data):
            raise FormatError(self._source, self.offset(), "the tar ends too early")

    def _advance(self) -> None:
        """Go to the next chunk, which must be inline; none at the end of the stream."""
        self._base += self._at
        self._at = 0
        chunk = next(self._chunks, b"")
        if isinstance(chunk, int):
            raise FormatError(self._source, self.offset(), "a content is not where it should be")
        self._data = chunk


def read_stored_layer(stream: SplitStream) -> Iterator[Entry]:
    """The members of a layer that is in the repository."""
    if stream.content_type != OCI_LAYER:
        raise FormatError(stream.source, None, f"is a {stream.content_type!r}, not a layer")
    return read_tar(_StoredInput(stream), stream.source)
