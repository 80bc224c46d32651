# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fs-verity digests, as the kernel measures them. Source: Documentation/filesystems/fsverity.rst.

Blocks of 4096 bytes, no salt. Every block of the file, the last one padded with zeros, is hashed;
the hashes, concatenated and padded with zeros to whole blocks, are the next level, until one hash
is left: the root. An empty file has a root of zeros. The digest of a file is the hash of this
descriptor of 256 bytes, little-endian:

    0  u8  version = 1                 4  u32 0
    1  u8  1 = sha256, 2 = sha512      8  u64 size of the data
    2  u8  log2 of the block size: 12  16 64 bytes: the root hash, padded with zeros
    3  u8  size of the salt: 0         80 176 bytes: zeros

A digest is raw bytes here; hexadecimal is for names and for people.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

Buffer = bytes | bytearray | memoryview

BLOCK = 4096
_ZEROS = bytes(BLOCK)
_ROOM = 256 * 1024
_DESCRIPTOR = struct.Struct("<BBBBIQ64s176x")


class Algorithm(StrEnum):
    """The hash of a repository."""

    SHA256 = "sha256"
    SHA512 = "sha512"

    @property
    def size(self) -> int:
        """Bytes in a digest."""
        return 32 if self is Algorithm.SHA256 else 64

    @property
    def kernel(self) -> int:
        """The number that the kernel, and the overlayfs metacopy attribute, give it."""
        return 1 if self is Algorithm.SHA256 else 2

    @property
    def identifier(self) -> str:
        """What `meta.json` says: the hash and log2 of the block size."""
        return f"fsverity-{self.value}-12"

    def hasher(self) -> Hasher:
        return Hasher(self)

    @property
    def function(self) -> Callable[[Buffer], _Hash]:
        """The plain hash function, not the fs-verity one."""
        return hashlib.sha256 if self is Algorithm.SHA256 else hashlib.sha512


def _hash_blocks(function: Callable[[Buffer], _Hash], data: Buffer) -> bytes:
    """The hashes of the blocks of `data`, concatenated; the last block is padded with zeros."""
    size = len(data)
    whole = size - size % BLOCK
    view = memoryview(data)
    hashes = [function(view[at : at + BLOCK]).digest() for at in range(0, whole, BLOCK)]
    if whole != size:
        hashes.append(function(bytes(view[whole:]) + _ZEROS[size - whole :]).digest())
    return b"".join(hashes)


def _describe(function: Callable[[Buffer], _Hash], kernel: int, size: int, root: bytes) -> bytes:
    return function(_DESCRIPTOR.pack(1, kernel, 12, 0, 0, size, root)).digest()


def digest_of_descriptor(descriptor: bytes, algorithm: Algorithm) -> bytes | None:
    """The digest of a file with this descriptor; None if that isn't one of `algorithm`, of blocks
    of 4096 bytes and without a salt: the digests of others look like ours and are none."""
    if descriptor[:4] != bytes([1, algorithm.kernel, 12, 0]) or len(descriptor) != _DESCRIPTOR.size:
        return None
    # A signature's size isn't part of what is hashed.
    return algorithm.function(descriptor[:4] + bytes(4) + descriptor[8:]).digest()


def digest_bytes(data: Buffer, algorithm: Algorithm) -> bytes:
    """The fs-verity digest of a file that holds `data`."""
    function, width = algorithm.function, algorithm.size
    level = _hash_blocks(function, data)
    while len(level) > width:
        level = _hash_blocks(function, level)
    return _describe(function, algorithm.kernel, len(data), level)


def digest_fd(fd: int, algorithm: Algorithm) -> bytes:
    """The fs-verity digest of the whole regular file `fd`, in constant memory.

    The file's position is neither used nor moved.
    """
    size = os.fstat(fd).st_size
    if size > _ROOM:
        digest, found, _ = FileHasher(algorithm).digest(fd)
        if found == size:
            return digest
    # What follows bears short reads, and files that don't know their size.
    chunk = os.pread(fd, _ROOM, 0)
    at = len(chunk)
    if at < _ROOM and not os.pread(fd, 1, at):
        return digest_bytes(chunk, algorithm)
    hasher = Hasher(algorithm)
    while chunk:
        hasher.update(chunk)
        chunk = os.pread(fd, _ROOM, at)
        at += len(chunk)
    return hasher.digest()


class FileHasher:
    """fs-verity digests of many files, one after another, through one buffer.

    A fresh buffer for each would cost more than a small file's digest. The buffer is cut into its
    blocks once: that takes as long as a tenth of the hashing.
    """

    __slots__ = (
        "_algorithm",
        "_blocks",
        "_digest",
        "_function",
        "_kernel",
        "_room",
        "_vector",
        "_view",
    )

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._function = algorithm.function
        self._kernel = algorithm.kernel
        self._digest = type(self._function(b"")).digest
        self._room = bytearray(_ROOM)
        self._vector = (self._room,)
        self._view = memoryview(self._room)
        self._blocks = [self._view[at : at + BLOCK] for at in range(0, _ROOM, BLOCK)]

    def digest(self, fd: int) -> tuple[bytes, int, memoryview | None]:
        """(digest, size, content) of the regular file `fd`, in constant memory.

        The content is None if it is larger than the buffer, else a part of that, good until the
        next call. The file's position is neither used nor moved. A short read is taken for the
        file's end: the caller compares the size with the one that it expects.
        """
        size = os.preadv(fd, self._vector, 0)
        if size == _ROOM:
            return self._digest_large(fd)
        if size <= BLOCK:
            root = self._hash(size)
        else:
            # No more than a block of hashes.
            root = self._function(self._hash(size).ljust(BLOCK, b"\0")).digest()
        return _describe(self._function, self._kernel, size, root), size, self._view[:size]

    def _digest_large(self, fd: int) -> tuple[bytes, int, memoryview | None]:
        hasher = Hasher(self._algorithm)
        count = _ROOM
        while count:
            hasher.add(self._hash(count), count)
            count = os.preadv(fd, self._vector, hasher.size)
            if hasher.size % BLOCK:
                break
        return hasher.digest(), hasher.size + count, None

    def _hash(self, size: int) -> bytes:
        """The hashes of the blocks of what was read last; the last one is padded with zeros."""
        blocks = self._blocks
        if size != _ROOM:
            end = size + -size % BLOCK
            self._room[size:end] = _ZEROS[: end - size]
            blocks = blocks[: end // BLOCK]
        return b"".join(map(self._digest, map(self._function, blocks)))


class Hasher:
    """The fs-verity digest of data that arrives in pieces; memory is a block per tree level.

    Pieces that are multiples of 4096 bytes are hashed without a copy.
    """

    __slots__ = ("_algorithm", "_function", "_levels", "_rest", "size")

    def __init__(self, algorithm: Algorithm) -> None:
        self.size = 0
        self._algorithm = algorithm
        self._function = algorithm.function
        self._rest = b""
        self._levels: list[bytes] = []

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        self.size += len(view)
        if self._rest:
            missing = BLOCK - len(self._rest)
            self._rest += bytes(view[:missing])
            if len(self._rest) < BLOCK:
                return
            _add(self._levels, self._function, self._function(self._rest).digest())
            view = view[missing:]
        whole = len(view) - len(view) % BLOCK
        self._rest = bytes(view[whole:])
        if whole:
            _add(self._levels, self._function, _hash_blocks(self._function, view[:whole]))

    def add(self, hashes: bytes, size: int) -> None:
        """The hashes of the blocks of the next `size` bytes, instead of these.

        Only the last piece may be no whole number of blocks.
        """
        self.size += size
        _add(self._levels, self._function, hashes)

    def digest(self) -> bytes:
        """The digest of what came so far; more may follow."""
        if not self.size:
            return _describe(self._function, self._algorithm.kernel, 0, b"")
        levels = self._levels.copy()
        if self._rest:
            _add(levels, self._function, _hash_blocks(self._function, self._rest))
        width = self._algorithm.size
        number = 0
        while not (number == len(levels) - 1 and len(levels[number]) == width):
            if left := levels[number]:
                levels[number] = b""
                _add(levels, self._function, _hash_blocks(self._function, left), number + 1)
            number += 1
        return _describe(self._function, self._algorithm.kernel, self.size, levels[number])


def _add(
    levels: list[bytes], function: Callable[[Buffer], _Hash], hashes: bytes, number: int = 0
) -> None:
    """Append `hashes` to a level; its whole blocks move, hashed, to the level above."""
    while hashes:
        if number == len(levels):
            levels.append(b"")
        level = levels[number] + hashes
        whole = len(level) - len(level) % BLOCK
        levels[number] = level[whole:]
        hashes = _hash_blocks(function, memoryview(level)[:whole])
        number += 1
