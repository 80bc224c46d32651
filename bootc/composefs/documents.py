# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Manifest and config of an image in a repository, read without opening the repository.

For whoever only wants to know what an image says of itself, at a fraction of the modules and the
time. `streams/oci-manifest-<digest>` and `streams/oci-config-<digest>` lead to split streams of one
object each, the document (see splitstream for the format, stored for the names). As both are asked
for by their OCI digest and verified by it, nothing else has to be relied upon.

Streams with the older header, and whatever isn't as simple, are left to `stored.load_image`: the
answer is None.
"""

from __future__ import annotations

import hashlib
import os
import struct

from bootc.errors import BootcError
from bootc.jsonutil import Reader, read_object
from bootc.records import dataclass

_HEADER = struct.Struct("<11sBHBBQQ")
_RANGES = struct.Struct("<8Q")
_DIGEST_SIZES = {1: 32, 2: 64}
_STREAM_MAX = 1 << 22
_DOCUMENT_MAX = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The two documents of an image."""

    manifest: Reader
    config: Reader


def find_documents(repository: str, manifest_digest: str) -> Documents | None:
    """The documents of the image with this manifest, both verified; None as said above."""
    try:
        manifest = _read(repository, f"oci-manifest-{manifest_digest}", manifest_digest)
        digest = manifest.table("config").text("digest")
        return Documents(
            manifest=manifest, config=_read(repository, f"oci-config-{digest}", digest)
        )
    except (OSError, BootcError, ValueError, KeyError, struct.error):
        return None


def _read(repository: str, name: str, digest: str) -> Reader:
    """One document; raises whatever is in the way."""
    if "/" in name:
        raise ValueError(name)
    stream = _read_file(f"{repository}/streams/{name}", _STREAM_MAX)
    magic, version, flags, kind, block, start, end = _HEADER.unpack_from(stream)
    if (magic, version, flags, block) != (b"SplitStream", 0, 0, 12) or start > end:
        raise ValueError(name)
    _, _, first, last, *_ = _RANGES.unpack_from(stream, start)
    if last - first != _DIGEST_SIZES[kind]:
        raise ValueError(name)
    found = stream[first:last].hex()
    data = _read_file(f"{repository}/objects/{found[:2]}/{found[2:]}", _DOCUMENT_MAX)
    algorithm, _, value = digest.partition(":")
    if algorithm not in ("sha256", "sha512") or hashlib.new(algorithm, data).hexdigest() != value:
        raise ValueError(name)
    return read_object(data, name)


def _read_file(path: str, limit: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise ValueError(path)
        return os.read(fd, size)
    finally:
        os.close(fd)
