# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Let the files of a stored image be the extents of the repository's objects, after the fact.

Layers that the repository has are not read again when their image comes into bootc's container
storage, so podman's files and the objects are two copies of the same contents. They are in the same
order in both: the contents of a layer's tar. The kernel compares each pair, byte by byte, before it
lets podman's file have the object's extents; neither file's contents, times or verity change. So
what is wrong here can cost room, and nothing else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledLayer, layer_content_id, read_stream_object
from bootc.linux import reflink
from bootc.oci.layout import FilesSource
from bootc.records import dataclass
from bootc.storage.layer import ContentFile, LayerReader
from bootc.tree import INLINE_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFiles:
    """How many files share their extents now, and their bytes."""

    files: int
    size: int


def share_files(
    repo: Repository, source: FilesSource, layers: Iterable[PulledLayer]
) -> SharedFiles | None:
    """Share what can be of these layers of `source`; None if the file system has nothing like it.

    Raises `BootcError` and `OSError` for what cannot be read.
    """
    files = size = 0
    for layer in {layer.diff_id: layer for layer in layers}.values():
        with source.open_layer(layer.diff_id) as reader:
            for count in _shared(repo, reader, layer):
                if count is None:
                    return None
                files += count > 0
                size += count
    return SharedFiles(files=files, size=size)


def _shared(repo: Repository, reader: LayerReader, layer: PulledLayer) -> Iterator[int | None]:
    """The bytes that each content shares; None where that is not to be had."""
    stream = read_stream_object(repo, layer.digest, layer_content_id(layer.diff_id))
    objects = (stream.object_refs[chunk] for chunk in stream.chunks() if isinstance(chunk, int))
    for piece in reader.pieces():
        if isinstance(piece, bytes):
            continue
        digest = next(objects, None) if piece.size > INLINE_MAX else None
        try:
            count = _share(repo, piece, digest) if digest is not None else 0
        finally:
            os.close(piece.fd)
        yield count


def _share(repo: Repository, file: ContentFile, digest: bytes) -> int | None:
    fd = repo.open_object(digest)
    try:
        return reflink.share(file.fd, fd, file.size)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise
    finally:
        os.close(fd)
