# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A look for a kernel in the layers of an image, before the disk is touched.

Only headers of the tar are read (see `bootc.oci.tarstream` for the format). What compresses a layer
must be undone, so this is for images that nobody has labelled as bootable, and for those where it
costs nothing. Names of kernels are short, so extended headers don't matter.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from bootc.deploy.kernel import NO_KERNEL, NO_KERNEL_HINT
from bootc.errors import BootcError, FormatError
from bootc.oci.layout import ImageSource
from bootc.oci.model import Compression, layer_compression, read_manifest
from bootc.oci.reference import ImageReference, Transport

_KERNEL = re.compile(rb"(?:\./|/)?usr/lib/modules/[^/]+/vmlinuz|(?:\./|/)?boot/EFI/Linux/.+\.efi")
_BLOCK = 512
_CHUNK = 1 << 20


def is_cheap_to_scan(reference: ImageReference, source: ImageSource) -> bool:
    """Whether all layers are plain files that one can seek in."""
    layers = read_manifest(source.manifest, source.manifest_digest).layers
    return reference.transport is Transport.OCI and all(
        layer_compression(layer.media_type) is Compression.NONE for layer in layers
    )


def need_kernel(source: ImageSource) -> None:
    """Refuse an image none of whose layers brings a kernel along."""
    manifest = read_manifest(source.manifest, source.manifest_digest)
    for layer in reversed(manifest.layers):
        with source.open_blob(layer.digest) as blob:
            if has_kernel(blob, layer_compression(layer.media_type), layer.digest):
                return
    raise BootcError(NO_KERNEL, hint=NO_KERNEL_HINT)


def has_kernel(blob: BinaryIO, compression: Compression, source: str) -> bool:
    """Whether one layer has a kernel in it. One cut short is left to the pull."""
    data: _Forward
    match compression:
        case Compression.NONE:
            data = _Plain(blob)
        case Compression.GZIP:
            data = _Stream(_gunzip(blob, source))
        case Compression.ZSTD:
            data = _Stream(_unzstd(blob))
    while len(block := data.read(_BLOCK)) == _BLOCK and block[0]:
        if _KERNEL.fullmatch(_name(block)):
            return True
        data.skip(-(-_size(block[124:136], source) // _BLOCK) * _BLOCK)
    return False


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _size(field: bytes, source: str) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise FormatError(source, None, "is not a tar archive") from None


class _Forward(Protocol):
    def read(self, size: int) -> bytes: ...

    def skip(self, size: int) -> None: ...


class _Plain:
    """A file: skipping is free where it can seek."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._seeks = file.seekable()

    def read(self, size: int) -> bytes:
        parts = []
        while size and (piece := self._file.read(size)):
            parts.append(piece)
            size -= len(piece)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        if self._seeks:
            self._file.seek(size, 1)
            return
        while size and (piece := self._file.read(min(size, _CHUNK))):
            size -= len(piece)


class _Stream:
    """Pieces of decompressed data, one at a time."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._piece):
            found = self._piece[self._at : end]
            self._at = end
            return found
        found = self._piece[self._at :]
        self._piece, self._at = next(self._pieces, b""), 0
        return found + self.read(size - len(found)) if self._piece else found

    def skip(self, size: int) -> None:
        self._at += size
        while self._at > len(self._piece):
            self._at -= len(self._piece)
            self._piece = next(self._pieces, b"")
            if not self._piece:
                self._at = 0
                return


def _gunzip(blob: BinaryIO, source: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(31)
    while piece := blob.read(_CHUNK):
        while piece:
            try:
                data = unpacker.decompress(piece)
            except zlib.error as error:
                raise FormatError(source, None, f"is not gzip: {error}") from error
            if data:
                yield data
            piece = unpacker.unused_data
            if unpacker.eof:
                unpacker = zlib.decompressobj(31)


def _unzstd(blob: BinaryIO) -> Iterator[bytes]:
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True) as reader:
        while piece := reader.read(_CHUNK):
            yield piece
