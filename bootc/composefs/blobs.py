# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A blob's bytes on their way from the source to whoever parses them: hashed, unpacked, read ahead.

Each stage has one method, `read(size)`: up to about `size` bytes, nothing at the end. Gzip is
unpacked by python3-isal where that is installed (twice as fast), else by the standard library.
Both forms may consist of several members or frames; bytes behind the last one are an error.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

import zstandard

from bootc.errors import FormatError
from bootc.oci.model import Compression, digest_hasher

if TYPE_CHECKING:
    from hashlib import _Hash


def _find_inflate() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


_inflate = _find_inflate()
CHUNK = 1 << 20
_AHEAD = 4
"""Chunks that wait at most between two threads."""
_PATIENCE = 0.2
_INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error, _inflate.error)
_ZSTD_WINDOW_MAX = 128 << 20
"""Bytes: what `zstd -d` accepts without being asked (RFC 8878 recommends 8 MiB at least)."""


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class HashingReader:
    """Passes a stream through and computes its digests, one for each algorithm in `expected`.

    With `size`, more bytes than that are refused as soon as they come, and fewer at the end.
    """

    def __init__(
        self,
        stream: Readable,
        expected: list[str],
        source: str,
        *,
        size: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self._stream = stream
        self._expected = expected
        self._size = size
        self._done = 0
        self._source = source
        self._on_bytes = on_bytes
        hashers = [digest_hasher(digest) for digest in expected]
        self._hashers: dict[str, _Hash] = {hasher.name: hasher for hasher in hashers}

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        if data:
            self._done += len(data)
            if self._size is not None and self._done > self._size:
                raise self._too_long(self._size)
            for hasher in self._hashers.values():
                hasher.update(data)
            if self._on_bytes is not None:
                self._on_bytes(len(data))
        return data

    def _too_long(self, size: int) -> FormatError:
        return FormatError(self._source, size, f"is longer than the {size} bytes it should be")

    def verify(self) -> None:
        """Read to the end and raise `FormatError` unless every expected digest was met."""
        while (self._size is None or self._done <= self._size) and self.read(CHUNK):
            pass
        if self._size is not None and self._done > self._size:
            raise self._too_long(self._size)
        if self._size is not None and self._done != self._size:
            raise FormatError(
                self._source,
                self._done,
                f"ends too early: it should be {self._size} bytes long",
                hint="the image is damaged: copy it or pull it again",
            )
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
    def __init__(self, stream: Readable, source: str) -> None:
        self._stream = stream
        self._source = source
        self._inflate: Any = _inflate.decompressobj(wbits=31)
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
                data: bytes = self._inflate.decompress(self._input, max(size, CHUNK))
            except _INFLATE_ERRORS as error:
                raise FormatError(self._source, None, f"bad gzip stream: {error}") from error
            if self._inflate.eof:
                self._input = self._inflate.unused_data
                self._inflate = _inflate.decompressobj(wbits=31)
                self._fresh = True
            else:
                self._input = self._inflate.unconsumed_tail
                self._fresh = False
            if data:
                return data


class _Unzstd:
    def __init__(self, stream: Readable, source: str) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
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


def decompressed(stream: Readable, compression: Compression, source: str) -> Readable:
    """The unpacked content of `stream`; errors name `source`."""
    match compression:
        case Compression.NONE:
            return stream
        case Compression.GZIP:
            return _Gunzip(stream, source)
        case Compression.ZSTD:
            return _Unzstd(stream, source)


class _ReadAhead:
    """Reads chunks in a thread of its own, so that unpacking and parsing overlap."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._queue: Queue[bytes | BaseException] = Queue(_AHEAD)
        self._stopped = threading.Event()
        self._ended = False
        self.thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)

    def stop(self) -> None:
        self._stopped.set()

    def read(self, size: int = -1, /) -> bytes:
        """The next chunk, whatever `size` is."""
        if self._ended:
            return b""
        found = self._queue.get()
        if isinstance(found, BaseException):
            self._ended = True
            raise found
        self._ended = not found
        return found

    def _work(self) -> None:
        found: bytes | BaseException = b"-"
        while found and not isinstance(found, BaseException):
            try:
                found = self._stream.read(CHUNK)
            except BaseException as error:  # handed to the thread that reads
                found = error
            while not self._stopped.is_set():
                try:
                    self._queue.put(found, timeout=_PATIENCE)
                    break
                except Full:
                    continue
            else:
                return


@contextmanager
def reading_ahead(stream: Readable) -> Iterator[_ReadAhead]:
    """`stream`, read by another thread as long as the block runs."""
    ahead = _ReadAhead(stream)
    ahead.thread.start()
    try:
        yield ahead
    finally:
        ahead.stop()
        try:
            while True:
                ahead._queue.get_nowait()
        except Empty:
            pass
        ahead.thread.join()
