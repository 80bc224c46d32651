# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A layer's way back: from the split stream in the repository to members, and to the tar itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import OCI_LAYER, SplitStream
from bootc.errors import FormatError
from bootc.oci.model import digest_hasher
from bootc.oci.tarstream import BLOCK, Entry, read_tar
from bootc.tree import INLINE_MAX, External, Leaf

_CHUNK = 1 << 20


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
        at = self._at
        end = at + BLOCK
        if end <= len(self._data):
            self._at = end
            return self._data[at:end]
        if at == len(self._data):
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
        padding = -size % BLOCK
        if padding:
            self._advance()
            self._at = padding
            if padding > len(self._data):
                raise FormatError(self._source, self.offset(), "the tar ends too early")

    def drain(self) -> None:
        self._at = len(self._data)
        for chunk in self._chunks:
            if isinstance(chunk, int):
                raise FormatError(self._source, self.offset(), "a content after the end")

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


def read_bytes(repo: Repository, stream: SplitStream) -> Iterator[bytes]:
    """The file that a split stream stands for, bit for bit, in pieces of 1 MiB at most where they
    come from objects. Objects are verified as they are opened."""
    for chunk in stream.chunks():
        if isinstance(chunk, bytes):
            yield chunk
            continue
        with os.fdopen(repo.open_object(stream.object_refs[chunk]), "rb", buffering=0) as file:
            while piece := file.read(_CHUNK):
                yield piece


def verify_layer(repo: Repository, stream: SplitStream, diff_id: str) -> None:
    """Raise `FormatError` unless the tar that `stream` stands for has this digest."""
    hasher = digest_hasher(diff_id)
    for piece in read_bytes(repo, stream):
        hasher.update(piece)
    found = f"{hasher.name}:{hasher.hexdigest()}"
    if found != diff_id:
        raise FormatError(stream.source, None, f"has the digest {found}, expected {diff_id}")
