# SPDX-License-Identifier: Apache-2.0 OR MIT
"""splitdirfdstream: a file in pieces, the large ones named in directories that travel beside it.

The stream goes through a pipe; the directories are file descriptors, passed by whoever set the pipe
up (see `dirfdstream_fds`). There is no header and no end mark: chunks follow each other, and the
stream may end only where a chunk would begin. A chunk is a byte for its type and

    0  Metadata        u32 length, bytes            what lies between contents: of a tar, the
                                                    headers and the padding
    1  InlineData      u32 length, bytes            a content, or a part of one
    2  FileBackedData  u64 length of the content,   a content that is the regular file `name` in
                       u32 index of the directory,  directory number `index`, from its first byte
                       u32 length of the name,
                       name

Integers are little-endian. Lengths are at most 256 MiB for the types 0 and 1, 4096 for a name; an
InlineData may be empty, a Metadata is not written when it is. All chunks, put together, are the
file.

A name is bytes: not empty, without a zero byte, not absolute, without a component `..`. It is
opened by openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS and RESOLVE_NO_XDEV: a symbolic
link is followed as long as it stays below its directory and on its file system. There is no other
way to open one, so this needs Linux 5.6. What is opened has to be a regular file of exactly the
length that was said.

What is read isn't trusted: all else is a `FormatError` with the offset in the stream.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from bootc import fs
from bootc.composefs.blobs import Readable
from bootc.errors import FormatError
from bootc.linux import libc

DATA_MAX = 256 << 20
"""Bytes of a Metadata or InlineData chunk."""
NAME_MAX = 4096
_METADATA, _INLINE, _FILE = range(3)
_LENGTH = Struct("<I")
_FILE_BACKED = Struct("<QII")
_HEAD = Struct("<BI")
_FILE_HEAD = Struct("<BQII")
_PIECE = 1 << 20
_BUFFER = 64 << 10
_RESOLVE = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV
# Neither a terminal nor a FIFO, should somebody have put one there, may hold us up.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
SOURCE = "the splitdirfdstream"


@dataclass(frozen=True, slots=True)
class Data:
    """A Metadata or InlineData chunk; its bytes come from `StreamReader.data`."""

    size: int
    content: bool
    """Whether it is InlineData."""


@dataclass(frozen=True, slots=True)
class FileBacked:
    """A content that is the file `name` in the directory `index`."""

    size: int
    index: int
    name: bytes


Chunk = Data | FileBacked


def name_problem(name: bytes) -> str | None:
    """Why `name` can't be one, or None."""
    if not name:
        return "an empty name"
    if len(name) > NAME_MAX:
        return f"a name of {len(name)} bytes"
    if b"\0" in name:
        return f"a name with a zero byte: {name[:80]!r}"
    if name.startswith(b"/"):
        return f"an absolute name: {name[:80]!r}"
    if b".." in name.split(b"/"):
        return f"a name that leads out of its directory: {name[:80]!r}"
    return None


class StreamWriter:
    """Writes chunks to the descriptor `fd`, which is borrowed. Call `flush` after the last one.

    Raises `OSError`, BrokenPipeError when the reader went away.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: list[bytes] = []
        self._size = 0

    def metadata(self, data: bytes) -> None:
        if data:
            self._data(_METADATA, data)

    def inline(self, data: bytes) -> None:
        """A content, or a part of one: contents with no Metadata between them are one."""
        if data:
            self._data(_INLINE, data)
        else:
            self._put(_HEAD.pack(_INLINE, 0))

    def file(self, size: int, index: int, name: bytes) -> None:
        """A content: the file `name`, `size` bytes long, in directory number `index`."""
        problem = name_problem(name)
        if problem is not None:
            raise FormatError(SOURCE, None, problem)
        self._put(_FILE_HEAD.pack(_FILE, size, index, len(name)) + name)

    def _data(self, kind: int, data: bytes) -> None:
        for at in range(0, len(data), DATA_MAX):
            part = data if len(data) <= DATA_MAX else data[at : at + DATA_MAX]
            self._put(_HEAD.pack(kind, len(part)))
            self._put(part)

    def _put(self, data: bytes) -> None:
        if len(data) >= _BUFFER:
            self.flush()
            fs.write_all(self._fd, data)
            return
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._size:
            data = b"".join(self._waiting)
            self._waiting, self._size = [], 0
            fs.write_all(self._fd, data)


class StreamReader:
    """Reads chunks from `stream`, in memory that does not depend on their size."""

    def __init__(self, stream: Readable, source: str = SOURCE) -> None:
        """`source` names the stream in errors."""
        self._stream = stream
        self._source = source
        self._buffer = b""
        self._at = 0
        self._base = 0
        self._left = 0

    @property
    def unread(self) -> int:
        """The bytes that are left of the `Data` chunk that came last."""
        return self._left

    def offset(self) -> int:
        """The offset in the stream of what is read next."""
        return self._base + self._at

    def next(self) -> Chunk | None:
        """The next chunk, or None at the end; what was not read of the last one is skipped."""
        while self._left:
            self.data(_PIECE)
        begin = self.offset()
        if self._at == len(self._buffer) and not self._fill():
            return None
        kind = self._buffer[self._at]
        self._at += 1
        if kind == _FILE:
            size, index, length = _FILE_BACKED.unpack(self._exactly(_FILE_BACKED.size))
            if not 0 < length <= NAME_MAX:
                raise FormatError(self._source, begin, f"a name of {length} bytes")
            name = self._exactly(length)
            problem = name_problem(name)
            if problem is not None:
                raise FormatError(self._source, begin, problem)
            return FileBacked(size, index, name)
        if kind not in (_METADATA, _INLINE):
            raise FormatError(self._source, begin, f"unknown chunk type {kind}")
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > DATA_MAX:
            raise FormatError(self._source, begin, f"a chunk of {length} bytes")
        self._left = length
        return Data(length, kind == _INLINE)

    def data(self, limit: int = _PIECE) -> bytes:
        """Up to `limit` bytes of the `Data` chunk that came last, nothing after its end."""
        limit = min(limit, self._left)
        if not limit:
            return b""
        if self._at == len(self._buffer) and not self._fill():
            raise FormatError(self._source, self.offset(), f"ends {self._left} bytes too early")
        found = self._buffer[self._at : self._at + limit]
        self._at += len(found)
        self._left -= len(found)
        return found

    def _fill(self) -> bool:
        self._base += self._at
        self._buffer = self._stream.read(_PIECE)
        self._at = 0
        return bool(self._buffer)

    def _exactly(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._buffer):
            found = self._buffer[self._at : end]
            self._at = end
            return found
        parts: list[bytes] = []
        left = size
        while left:
            if self._at == len(self._buffer) and not self._fill():
                raise FormatError(self._source, self.offset(), "ends in the middle of a chunk")
            part = self._buffer[self._at : self._at + left]
            parts.append(part)
            self._at += len(part)
            left -= len(part)
        return b"".join(parts)


def read_chunks(stream: Readable, source: str = SOURCE) -> Iterator[tuple[Chunk, bytes]]:
    """Every chunk with its bytes (none for a `FileBacked`); for streams that fit into memory."""
    reader = StreamReader(stream, source)
    while (chunk := reader.next()) is not None:
        yield chunk, b"".join(iter(reader.data, b""))


def open_beneath(directory: int, chunk: FileBacked, source: str = SOURCE) -> int:
    """A descriptor, for reading, of the file that `chunk` means; the caller's to close.

    `directory` is not trusted either. Raises `FormatError` for what the module's text refuses.
    """
    try:
        fd = libc.openat2(directory, os.fsdecode(chunk.name), _READ, resolve=_RESOLVE)
    except OSError as error:
        raise FormatError(source, _shown(chunk), _refusal(error)) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(source, _shown(chunk), "is no regular file")
        if found.st_size != chunk.size:
            raise FormatError(
                source,
                _shown(chunk),
                f"is {found.st_size} bytes long, but was said to be {chunk.size}",
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _shown(chunk: FileBacked) -> str:
    name = chunk.name[:200].decode("utf-8", "replace")
    return f"file {name!r} in directory {chunk.index}"


def _refusal(error: OSError) -> str:
    match error.errno:
        case errno.EXDEV:
            return "leads out of its directory, or to another file system"
        case errno.ENOTDIR | errno.EBADF:
            return (
                "cannot be opened: the descriptor passed for the directory, or a part of the"
                " name, is no directory"
            )
        case errno.ELOOP:
            return "cannot be opened: too many symbolic links, or one of /proc"
        case errno.ENOSYS:
            return "cannot be opened: this needs openat2(2), Linux 5.6"
        case _:
            return f"cannot be opened: {error.strerror}"
