# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Split streams: a file (a tar layer, a JSON document) as inline bytes and references to objects.

    offset  size  header (32)
    0       11    "SplitStream"
    11      1     version, 0
    12      2     flags, 0
    14      1     hash algorithm of the object names: 1 sha256, 2 sha512
    15      1     log2 of the verity block size, 12
    16      8+8   start and end of the info section

    info section (80, may be longer): four ranges (start and end, u64) in the order stream refs,
    object refs, stream, named refs; 8 bytes of content type; u64 size of the reconstructed file

All integers are little-endian; offsets count from the start of the file. An older header
has the fields in another order (info range, flags, magic, version, algorithm, block size); it is
read, not written.

* stream refs, object refs: binary digests, each once, in the order of first use;
* named refs: a zstd frame over `INDEX:NAME\\0` for each name, names sorted bytewise; INDEX counts
  stream refs;
* stream: a zstd frame over chunks: i64 n < 0, then -n inline bytes; or i64 n >= 0, the object ref
  of that index. Inline chunks are never empty and never adjacent.

A split stream's own digest depends on the zstd library's version, so it is no portable identity.

What is read isn't trusted. Errors are `FormatError`s that name the section: anything outside of the
file, a zstd frame that isn't whole or isn't alone, unknown references, names given twice, an inline
chunk of more than 256 MiB, more inline bytes than the reconstructed file is said to have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zstandard

from bootc.composefs.digest import Algorithm
from bootc.errors import FormatError
from bootc.records import dataclass

OCI_LAYER = b"ocilayer"
OCI_CONFIG = b"ociconfg"
OCI_MANIFEST = b"ocimanif"
OCI_BLOB = b"oci_blob"

_MAGIC = b"SplitStream"
_HEADER = struct.Struct("<11sBHBBQQ")
_OLD_HEADER = struct.Struct("<QQH11sBBB")
_INFO = struct.Struct("<8Q8sQ")
_CHUNK = struct.Struct("<q")
_FEED = 128 * 1024
_READ = 128 * 1024
INLINE_RUN_MAX = 256 << 20
"""Bytes of an inline chunk; it is in memory as a whole."""
_NAMES_MAX = 16 << 20
_INDEX_DIGITS = 9


def _compressor() -> zstandard.ZstdCompressionObj:
    # The library's defaults in streaming use: no checksum, and no size as it isn't known.
    return zstandard.ZstdCompressor(level=3).compressobj()


class SplitStreamWriter:
    """Builds a split stream piece by piece; `finish` gives the file's bytes."""

    def __init__(self, algorithm: Algorithm, content_type: bytes) -> None:
        self._algorithm = algorithm
        self._content_type = content_type
        self._stream_refs: dict[bytes, int] = {}
        self._names: dict[bytes, int] = {}
        self._objects: dict[bytes, int] = {}
        self._compress = _compressor()
        self._frame: list[bytes] = []
        self._inline: list[bytes] = []
        self._inline_size = 0
        self._feed: list[bytes] = []
        self._feed_size = 0
        self._total = 0

    def named_ref(self, name: str, digest: bytes) -> None:
        """Refer to another stream (or an image) by `name`."""
        index = self._stream_refs.setdefault(digest, len(self._stream_refs))
        self._names[name.encode()] = index

    def inline(self, data: bytes) -> None:
        if data:
            self._inline.append(data)
            self._inline_size += len(data)

    def external(self, digest: bytes, size: int) -> None:
        """The object `digest` of `size` bytes comes next."""
        self._flush_inline()
        index = self._objects.setdefault(digest, len(self._objects))
        self._feed.append(_CHUNK.pack(index))
        self._feed_size += 8
        self._total += size
        if self._feed_size >= _FEED:
            self._flush_feed()

    def _flush_inline(self) -> None:
        if self._inline_size:
            self._feed.append(_CHUNK.pack(-self._inline_size))
            self._feed += self._inline
            self._feed_size += 8 + self._inline_size
            self._total += self._inline_size
            self._inline = []
            self._inline_size = 0

    def _flush_feed(self) -> None:
        if self._feed:
            self._frame.append(self._compress.compress(b"".join(self._feed)))
            self._feed = []
            self._feed_size = 0

    def finish(self) -> bytes:
        self._flush_inline()
        self._flush_feed()
        self._frame.append(self._compress.flush())
        stream = b"".join(self._frame)
        names = _compressor()
        entries = [b"%d:%s\0" % (index, name) for name, index in sorted(self._names.items())]
        packed = [names.compress(b"".join(entries))] if entries else []
        named = b"".join([*packed, names.flush()])
        streams = b"".join(self._stream_refs)
        objects = b"".join(self._objects)
        info_end = _HEADER.size + _INFO.size
        first = info_end + len(streams)
        second = first + len(objects)
        third = second + len(named)
        header = _HEADER.pack(
            _MAGIC, 0, 0, self._algorithm.kernel, 12, _HEADER.size, _HEADER.size + _INFO.size
        )
        info = _INFO.pack(
            *(info_end, first),
            *(first, second),
            *(third, third + len(stream)),
            *(second, third),
            self._content_type,
            self._total,
        )
        return b"".join([header, info, streams, objects, named, stream])


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStream:
    """A split stream that was read: `named_refs` maps names to binary digests."""

    source: str
    algorithm: Algorithm
    content_type: bytes
    total_size: int
    stream_refs: list[bytes]
    object_refs: list[bytes]
    named_refs: dict[str, bytes]
    frame: bytes

    def chunks(self) -> Iterator[bytes | int]:
        """Inline bytes, and indexes into `object_refs`, in the order of the file."""
        _check_frame(self.frame, self.source, "stream")
        reader = zstandard.ZstdDecompressor().stream_reader(self.frame)
        left = self.total_size
        data, at = b"", 0
        try:
            while True:
                if len(data) - at < _CHUNK.size:
                    # Chunks are small and many: reading each by itself would take most of the time.
                    data, at = data[at:] + reader.read(_READ), 0
                    if not data:
                        return
                    if len(data) < _CHUNK.size:
                        missing = _CHUNK.size - len(data)
                        raise FormatError(self.source, "stream", f"ends {missing} bytes too early")
                (number,) = _CHUNK.unpack_from(data, at)
                at += _CHUNK.size
                if number < 0:
                    left += number
                    if left < 0 or -number > INLINE_RUN_MAX:
                        raise FormatError(
                            self.source,
                            "stream",
                            f"an inline chunk of {-number} bytes is more than fits in a file of"
                            f" {self.total_size}, or than {INLINE_RUN_MAX}",
                        )
                    end = at - number
                    if end <= len(data):
                        yield data[at:end]
                        at = end
                    else:
                        rest = _read_exactly(reader, end - len(data), self.source)
                        yield data[at:] + rest
                        data, at = b"", 0
                elif number < len(self.object_refs):
                    yield number
                else:
                    raise FormatError(self.source, "stream", f"there is no object {number}")
        except zstandard.ZstdError as error:
            raise FormatError(self.source, "stream", f"bad zstd frame: {error}") from error

    def only_object(self) -> bytes:
        """The digest of the one object that this stream consists of (config, manifest, blob)."""
        chunks = list(self.chunks())
        if len(chunks) != 1 or not isinstance(chunks[0], int):
            raise FormatError(self.source, "stream", "is not one object")
        return self.object_refs[chunks[0]]


def _read_exactly(reader: zstandard.ZstdDecompressionReader, size: int, source: str) -> bytes:
    pieces: list[bytes] = []
    left = size
    while left > 0:
        piece = reader.read(min(left, 1 << 20))
        if not piece:
            raise FormatError(source, "stream", f"ends {left} bytes too early")
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check_frame(frame: bytes, source: str, where: str) -> None:
    """Raise `FormatError` unless `frame` is one whole zstd frame.

    The library neither tells a frame that was cut off between two of its blocks, nor what follows
    its end. Source: RFC 8878, 3.1.1.
    """
    try:
        at = zstandard.frame_header_size(frame)
        checksum = zstandard.get_frame_parameters(frame).has_checksum
    except zstandard.ZstdError as error:
        raise FormatError(source, where, f"bad zstd frame: {error}") from error
    if frame[:4] != zstandard.FRAME_HEADER:
        raise FormatError(source, where, "is not a zstd frame")
    last = 0
    while not last and at + 3 <= len(frame):
        head = int.from_bytes(frame[at : at + 3], "little")
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        # A block of kind 1 is a byte that is repeated.
        at += 3 + (1 if kind == 1 else size)
    at += 4 if checksum else 0
    if not last or at != len(frame):
        problem = (
            f"ends {len(frame) - at} bytes before" if last and at < len(frame) else "ends after"
        )
        raise FormatError(source, where, f"the zstd frame {problem} its section does")


def read_splitstream(data: bytes, source: str) -> SplitStream:
    """Parse a split stream; `source` names it in errors. Raises `FormatError` on bad input."""
    algorithm, info_start, info_end = _read_header(data, source)
    if not 0 <= info_start <= info_end <= len(data) or info_end - info_start < _INFO.size:
        raise FormatError(source, "info", f"bad section {info_start}..{info_end}")
    fields = _INFO.unpack_from(data, info_start)
    parts: list[bytes] = []
    for index, name in enumerate(("stream refs", "object refs", "stream", "named refs")):
        start, end = fields[2 * index : 2 * index + 2]
        if not start <= end <= len(data):
            raise FormatError(source, name, f"bad section {start}..{end}")
        parts.append(data[start:end])
    stream_refs = _digests(parts[0], algorithm, source, "stream refs")
    return SplitStream(
        source=source,
        algorithm=algorithm,
        content_type=fields[8],
        total_size=fields[9],
        stream_refs=stream_refs,
        object_refs=_digests(parts[1], algorithm, source, "object refs"),
        named_refs=_names(parts[3], stream_refs, source),
        frame=parts[2],
    )


def _read_header(data: bytes, source: str) -> tuple[Algorithm, int, int]:
    if len(data) < _HEADER.size:
        raise FormatError(source, 0, "is too short for a split stream")
    magic, version, flags, kernel, block, start, end = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        start, end, flags, magic, version, kernel, block = _OLD_HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise FormatError(source, 0, "is not a split stream")
    if version != 0 or flags != 0 or block != 12:
        raise FormatError(
            source, "header", f"unknown version {version}, flags {flags} or block size 2^{block}"
        )
    for algorithm in Algorithm:
        if algorithm.kernel == kernel:
            return algorithm, start, end
    raise FormatError(source, "header", f"unknown hash algorithm {kernel}")


def _digests(data: bytes, algorithm: Algorithm, source: str, where: str) -> list[bytes]:
    size = algorithm.size
    if len(data) % size:
        raise FormatError(source, where, f"{len(data)} bytes are no whole number of digests")
    return [data[at : at + size] for at in range(0, len(data), size)]


def _names(frame: bytes, refs: list[bytes], source: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if not frame:
        return found
    _check_frame(frame, source, "named refs")
    try:
        text = zstandard.ZstdDecompressor().stream_reader(frame).read(_NAMES_MAX + 1)
    except zstandard.ZstdError as error:
        raise FormatError(source, "named refs", f"bad zstd frame: {error}") from error
    if len(text) > _NAMES_MAX:
        raise FormatError(source, "named refs", "are longer than 16 MiB")
    if text and not text.endswith(b"\0"):
        raise FormatError(source, "named refs", "end in the middle of a name")
    for entry in text.split(b"\0")[:-1]:
        index, colon, name = entry.partition(b":")
        known = colon and index.isdigit() and len(index) <= _INDEX_DIGITS
        if not known or int(index) >= len(refs):
            raise FormatError(source, "named refs", f"bad entry {entry[:80]!r}")
        try:
            key = name.decode()
        except UnicodeDecodeError as error:
            raise FormatError(source, "named refs", f"bad name {name[:80]!r}") from error
        if key in found:
            raise FormatError(source, "named refs", f"{key[:80]!r} is there twice")
        found[key] = refs[int(index)]
    return found
