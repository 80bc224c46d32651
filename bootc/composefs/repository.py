# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A composefs repository: objects, the images and streams made of them, and references.

    meta.json    what the repository is, see `metadata`
    objects/     contents under their digests, see `object_repository` and `objects`
    images/      links to the objects that are EROFS images: only what is here gets mounted
    streams/     links to the objects that are split streams; for both, see `refs`

Checking is in `fsck`, removing what nothing refers to in `gc`.

Before a link is made everything it leads to is on the disk (one syncfs); a link is replaced in one
step and its directory is synced. So what can be found by name is whole, also after a power cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from bootc.composefs.metadata import Metadata, read_algorithm, read_metadata
from bootc.composefs.object_repository import ObjectRepository, OpenStatus
from bootc.composefs.refs import (
    IMAGES,
    REFS,
    STREAMS,
    NotFoundError,
    check_content_id,
    check_ref_name,
    escape_tag,
    parse_digest,
    unescape_tag,
)
from bootc.linux import fsverity
from bootc.records import dataclass

__all__ = [
    "Metadata",
    "NotFoundError",
    "OpenStatus",
    "OpenedImage",
    "Repository",
    "escape_tag",
    "read_algorithm",
    "read_metadata",
    "unescape_tag",
]

OCI_REFS = "oci"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedImage:
    """An image to be mounted; `fd` is the caller's.

    `verified`: the kernel vouches for the content, or a reference was relied upon. Otherwise it is
    mounted without asking for verity.
    """

    fd: int
    digest: bytes
    verified: bool


class Repository(ObjectRepository):
    """An open repository, a context manager; made by `Repository.init` and `Repository.open`."""

    # -- Streams

    def write_stream(self, content_id: str, data: bytes) -> bytes:
        """Store the split stream `data` and publish it as `streams/<content id>`."""
        check_content_id(content_id)
        digest = self.ensure_object(data)
        self.publish_streams({content_id: digest})
        return digest

    def publish_streams(self, streams: dict[str, bytes]) -> None:
        """Link stored split streams under their content ids, in order, after one sync."""
        self.need_writable()
        self.sync()
        for content_id, digest in streams.items():
            self.links.publish_object(f"{STREAMS}/{check_content_id(content_id)}", digest)

    def find_stream(self, content_id: str) -> bytes | None:
        """The digest of the split stream `content_id`, or None."""
        return self.links.object_of(f"{STREAMS}/{check_content_id(content_id)}")

    def read_stream(self, content_id: str) -> bytes:
        digest = self.find_stream(content_id)
        if digest is None:
            raise NotFoundError(f"there is no stream {content_id} in {self.path}")
        return self.read_object(digest)

    def resolve_stream(self, name: str) -> str:
        """The content id that `name` stands for: itself, or a path that begins with `refs/`."""
        if name.startswith(f"{REFS}/"):
            found = self.links.target(f"{STREAMS}/{check_ref_name(name)}")
            name = "" if found is None else found.rsplit("/", 1)[-1]
        if not name or self.find_stream(name) is None:
            raise NotFoundError(f"there is no stream {name} in {self.path}")
        return name

    # -- Images

    def write_image(self, data: bytes, name: str | None = None) -> bytes:
        """Store an EROFS image, publish it, under `name` too, and return its digest."""
        if name is not None:
            check_ref_name(name)
        digest = self.ensure_object(data)
        self.publish_image(digest, name)
        return digest

    def publish_image(self, digest: bytes, name: str | None = None) -> None:
        """Make the stored object `digest` an image that can be mounted, by `name`, too."""
        if name is not None:
            check_ref_name(name)
        self.need_writable()
        self.sync()
        self.links.publish_object(f"{IMAGES}/{digest.hex()}", digest)
        if name is not None:
            self.name_image(digest, name)

    def name_image(self, digest: bytes, name: str) -> None:
        """Make `name` lead to the image `digest`, which must exist."""
        self.need_writable()
        if not self.has_image(digest):
            raise NotFoundError(f"there is no image {digest.hex()} in {self.path}")
        self.links.publish(f"{IMAGES}/{REFS}/{check_ref_name(name)}", f"{IMAGES}/{digest.hex()}")

    def has_image(self, digest: bytes) -> bool:
        return self.links.object_of(f"{IMAGES}/{digest.hex()}") is not None

    def find_image(self, name: str) -> bytes | None:
        """The digest of the image that `name` stands for.

        That is its digest in hexadecimal, or a reference, with or without `refs/` before it.
        """
        if name in (".", "..", "", REFS) or "\0" in name:
            return None
        found = self.links.object_of(f"{IMAGES}/{name}") if "/" not in name else None
        if found is not None:
            return found
        target = self.links.target(f"{IMAGES}/{REFS}/{name.removeprefix(f'{REFS}/')}")
        if target is None:
            return None
        return parse_digest(target.rsplit("/", 1)[-1], self.algorithm)

    def need_image(self, name: str) -> bytes:
        """`find_image`, or `NotFoundError`."""
        digest = self.find_image(name)
        if digest is None:
            raise NotFoundError(
                f"there is no image {name} in {self.path}", hint="`cfsctl images` lists the images"
            )
        return digest

    def open_image(self, name: str) -> OpenedImage:
        """Open an image that is linked under `images`, by its digest or by a reference.

        By digest the kernel must agree. By reference the repository is relied upon. Raises
        `NotFoundError` if there is none, `BootcError` if it is damaged.
        """
        digest = self.need_image(name)
        if not self.has_image(digest):
            raise NotFoundError(f"there is no image {digest.hex()} in {self.path}")
        fd = self.open_object(digest)
        trusted = name.lower() != digest.hex()
        try:
            verified = trusted or fsverity.measure(fd) is not None
        except BaseException:
            os.close(fd)
            raise
        return OpenedImage(fd=fd, digest=digest, verified=verified)

    def read_image(self, name: str) -> bytes:
        """The bytes of the image that `name` stands for."""
        with os.fdopen(self.open_image(name).fd, "rb") as file:
            return file.read()

    def image_refs(self) -> Iterator[tuple[str, str]]:
        """(name, hexadecimal digest) of the named images, sorted by name."""
        yield from self._named(f"{IMAGES}/{REFS}")

    def _named(self, folder: str) -> Iterator[tuple[str, str]]:
        for found in self.links.references(folder):
            if found.target is not None:
                yield found.path.removeprefix(f"{folder}/"), found.leads_to

    # -- Tags

    def tag(self, content_id: str, name: str) -> None:
        """Make the tag `name` lead to the stream `content_id`, which must exist."""
        self.name_stream(content_id, f"{OCI_REFS}/{escape_tag(name)}")

    def name_stream(self, content_id: str, name: str) -> None:
        """Make `streams/refs/<name>` lead to the stream `content_id`, which must exist."""
        self.need_writable()
        if self.find_stream(content_id) is None:
            raise NotFoundError(f"there is no stream {content_id} in {self.path}")
        self.sync()
        self.links.publish(f"{STREAMS}/{REFS}/{check_ref_name(name)}", f"{STREAMS}/{content_id}")

    def untag(self, name: str) -> None:
        self.need_writable()
        if not self.links.remove(f"{STREAMS}/{REFS}/{OCI_REFS}/{escape_tag(name)}"):
            raise NotFoundError(f"there is no tag {name} in {self.path}")

    def find_tag(self, name: str) -> str | None:
        """The content id that a tag leads to, or None."""
        target = self.links.target(f"{STREAMS}/{REFS}/{OCI_REFS}/{escape_tag(name)}")
        return None if target is None else target.rsplit("/", 1)[-1]

    def tags(self) -> Iterator[tuple[str, str]]:
        """(tag, content id), sorted by tag."""
        found = self._named(f"{STREAMS}/{REFS}/{OCI_REFS}")
        yield from sorted((unescape_tag(name), content_id) for name, content_id in found)
