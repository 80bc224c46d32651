# SPDX-License-Identifier: Apache-2.0 OR MIT
"""OCI images as a repository holds them.

    streams/oci-layer-<diff id>      the layer's tar, contents as objects
    streams/oci-config-<digest>      named refs: every diff id → layer, image keys → EROFS image
    streams/oci-manifest-<digest>    named refs: `config:<digest>` → config, diff ids → layers

Config and manifest consist of one object, the JSON as it was pulled. A digest in a content id is
the OCI one, with its `sha256:`; the ids in named refs are fs-verity digests. The image keys (see
`image_key`) keep the EROFS images made of this image alive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bootc import fs
from bootc.composefs.repository import NotFoundError, Repository, escape_tag, unescape_tag
from bootc.composefs.splitstream import (
    OCI_CONFIG,
    OCI_MANIFEST,
    SplitStream,
    SplitStreamWriter,
    read_splitstream,
)
from bootc.errors import BootcError, FormatError
from bootc.oci.model import read_config, read_manifest, verify_digest
from bootc.oci.tarstream import Entry

_IMAGE_KEY = "composefs.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledLayer:
    """A layer in the repository; `entries` are its members if they are still at hand."""

    diff_id: str
    digest: bytes
    entries: tuple[Entry, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullStats:
    """What a pull did: objects it made, uses of objects that were there, bytes of the new ones,
    and bytes that lie in split streams."""

    new: int = 0
    present: int = 0
    stored: int = 0
    inlined: int = 0

    def __str__(self) -> str:
        return (
            f"{self.new} new + {self.present} already present objects; "
            f"{_size(self.stored)} stored, {_size(self.inlined)} inlined"
        )


def _size(count: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.2f} {unit}"
    return f"{count} B"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledImage:
    """An image in the repository. `manifest_id` and `config_id` name their split streams.

    An artifact, which is no image of a file system (not `is_container`), has the digests of its
    blobs as diff ids. Of an image that was asked for by a digest (not `trusted`) the layers are
    verified when they are read; otherwise the repository is relied upon.
    """

    reference: str
    manifest_digest: str
    config_digest: str
    manifest_id: str
    config_id: str
    manifest: bytes = field(repr=False)
    config: bytes = field(repr=False)
    layers: tuple[PulledLayer, ...]
    images: Mapping[str, bytes] = field(default_factory=dict)
    is_container: bool = True
    trusted: bool = True
    stats: PullStats = field(default_factory=PullStats)


def layer_content_id(diff_id: str) -> str:
    return f"oci-layer-{diff_id}"


def config_content_id(digest: str) -> str:
    return f"oci-config-{digest}"


def manifest_content_id(digest: str) -> str:
    return f"oci-manifest-{digest}"


def image_key(*, boot: bool, erofs_version: int, xattrs: str | None = None) -> str:
    """The name under which a config refers to an EROFS image made of it.

    `xattrs` is the mode of the attribute filter where it isn't the usual one.
    """
    kind = f"{_IMAGE_KEY}{'.boot' if boot else ''}{'' if erofs_version == 2 else '.v1'}"
    return kind if xattrs is None else f"{kind}.xattrs={xattrs}"


def write_documents(
    repo: Repository,
    *,
    reference: str,
    manifest_digest: str,
    manifest: bytes,
    config_digest: str,
    config: bytes,
    layers: tuple[PulledLayer, ...],
    images: Mapping[str, bytes],
    is_container: bool = True,
) -> PulledImage:
    """Store and publish config and manifest. The layers must be published already."""
    writer = SplitStreamWriter(repo.algorithm, OCI_CONFIG)
    for layer in layers:
        writer.named_ref(layer.diff_id, layer.digest)
    # The plain images come first, as the reference writes them.
    for key in sorted(images, key=lambda key: (key.startswith(f"{_IMAGE_KEY}.boot"), key)):
        writer.named_ref(key, images[key])
    writer.external(repo.ensure_object(config), len(config))
    config_id = repo.ensure_object(writer.finish())
    writer = SplitStreamWriter(repo.algorithm, OCI_MANIFEST)
    writer.named_ref(f"config:{config_digest}", config_id)
    for layer in layers:
        writer.named_ref(layer.diff_id, layer.digest)
    writer.external(repo.ensure_object(manifest), len(manifest))
    manifest_id = repo.ensure_object(writer.finish())
    repo.publish_streams(
        {
            config_content_id(config_digest): config_id,
            manifest_content_id(manifest_digest): manifest_id,
        }
    )
    return PulledImage(
        reference=reference,
        manifest_digest=manifest_digest,
        config_digest=config_digest,
        manifest_id=manifest_id.hex(),
        config_id=config_id.hex(),
        manifest=manifest,
        config=config,
        layers=layers,
        images=dict(images),
        is_container=is_container,
    )


def attach_images(
    repo: Repository, pulled: PulledImage, images: Mapping[str, bytes]
) -> PulledImage:
    """Let the config refer to EROFS images by `image_key`, so that they live as long as it does."""
    merged = {**pulled.images, **images}
    if merged == pulled.images:
        return pulled
    written = write_documents(
        repo,
        reference=pulled.reference,
        manifest_digest=pulled.manifest_digest,
        manifest=pulled.manifest,
        config_digest=pulled.config_digest,
        config=pulled.config,
        layers=pulled.layers,
        images=merged,
        is_container=pulled.is_container,
    )
    return replace(written, stats=pulled.stats, trusted=pulled.trusted)


def open_stream(repo: Repository, content_id: str) -> SplitStream:
    return read_splitstream(repo.read_stream(content_id), content_id)


def read_stream_object(repo: Repository, digest: bytes, source: str) -> SplitStream:
    """The split stream that is the object `digest`, as a named ref gives it."""
    return read_splitstream(repo.read_object(digest), source)


def image_refs(stream: SplitStream) -> dict[str, bytes]:
    """The EROFS images that a config stream refers to."""
    return {
        name: digest
        for name, digest in stream.named_refs.items()
        if name == _IMAGE_KEY or name.startswith(f"{_IMAGE_KEY}.")
    }


def find_manifest(repo: Repository, name: str) -> str:
    """The content id of the manifest that a tag or `@DIGEST` names."""
    if name.startswith("@"):
        content_id = manifest_content_id(name[1:])
        if repo.find_stream(content_id) is not None:
            return content_id
    else:
        found = repo.find_tag(name)
        if found is not None:
            return found
    raise NotFoundError(
        f"there is no image {name} in {repo.path}", hint="`cfsctl oci images` lists the images"
    )


def load_image(repo: Repository, name: str) -> PulledImage:
    """The image that a tag or `@DIGEST` (of its manifest) names.

    By `@DIGEST` the manifest and the config are verified against their OCI digests; by tag the
    repository is relied upon.
    """
    content_id = find_manifest(repo, name)
    verified = name.startswith("@")
    stream = open_stream(repo, content_id)
    manifest_id = repo.find_stream(content_id)
    if stream.content_type != OCI_MANIFEST or manifest_id is None:
        raise FormatError(content_id, None, "is no manifest")
    manifest = repo.read_object(stream.only_object())
    manifest_digest = content_id.removeprefix("oci-manifest-")
    if verified:
        verify_digest(manifest, manifest_digest, content_id)
    document = read_manifest(manifest, content_id)
    config_digest = document.config.digest
    found = load_config(repo, config_digest, digest=_ref(stream, f"config:{config_digest}"))
    if verified:
        verify_digest(found.config, config_digest, found.reference)
    layers = found.layers
    if not document.is_container:
        layers = tuple(
            PulledLayer(diff_id=layer.digest, digest=_ref(stream, layer.digest))
            for layer in document.layers
        )
    return replace(
        found,
        reference=name,
        manifest_digest=manifest_digest,
        manifest_id=manifest_id.hex(),
        manifest=manifest,
        layers=layers,
        is_container=document.is_container,
        trusted=not verified,
    )


def load_config(
    repo: Repository, config_digest: str, *, digest: bytes | None = None
) -> PulledImage:
    """An image by its config alone; what there is to say about the manifest is empty.

    `digest` is that of the config's split stream: the repository verifies it, so the layers named
    there are trusted. Without it the stream is looked up by `config_digest`, and the config and
    (when they are read) the layers are verified against their OCI digests.
    """
    source = config_content_id(config_digest)
    config_id = digest if digest is not None else repo.find_stream(source)
    if config_id is None:
        raise NotFoundError(f"there is no config {config_digest} in {repo.path}")
    stream = read_stream_object(repo, config_id, source)
    if stream.content_type != OCI_CONFIG:
        raise FormatError(source, None, "is no config")
    config = repo.read_object(stream.only_object())
    if digest is None:
        verify_digest(config, config_digest, source)
    layers: tuple[PulledLayer, ...] = ()
    # An artifact's config may be anything.
    if b'"rootfs"' in config:
        layers = tuple(
            PulledLayer(diff_id=diff_id, digest=_ref(stream, diff_id))
            for diff_id in read_config(config, source).diff_ids
        )
    return PulledImage(
        reference=source,
        manifest_digest="",
        config_digest=config_digest,
        manifest_id="",
        config_id=config_id.hex(),
        manifest=b"",
        config=config,
        layers=layers,
        images=image_refs(stream),
        trusted=digest is not None,
    )


def load_named(repo: Repository, name: str, verity: str | None = None) -> PulledImage:
    """The image of a tag, or of `@DIGEST` of its config (or its manifest).

    `verity` is what the split stream's own digest has to be, in hexadecimal: then what is named is
    trusted as much as the one who gave it. Raises `BootcError` if it differs.
    """
    if name.startswith("@") and repo.find_stream(config_content_id(name[1:])) is not None:
        content_id = config_content_id(name[1:])
    else:
        content_id = find_manifest(repo, name)
    found = repo.find_stream(content_id)
    if verity is not None and (found is None or found.hex() != verity.lower()):
        said = "missing" if found is None else found.hex()
        raise BootcError(f"{content_id} has the verity digest {said}, not {verity}")
    if content_id.startswith(config_content_id("")):
        image = load_config(repo, name[1:], digest=found if verity is not None else None)
        return replace(image, reference=name)
    image = load_image(repo, name)
    return replace(image, trusted=True) if verity is not None else image


def find_referrers(repo: Repository, manifest_digest: str) -> list[str]:
    """The manifest digests of artifacts about this one, sorted."""
    folder = f"streams/refs/oci-referrers/{escape_tag(manifest_digest)}"
    try:
        with fs.open_directory(folder, dir_fd=repo.fd) as fd:
            return sorted(unescape_tag(name) for name in os.listdir(fd))
    except FileNotFoundError:
        return []


def _ref(stream: SplitStream, name: str) -> bytes:
    digest = stream.named_refs.get(name)
    if digest is None:
        raise FormatError(stream.source, "named refs", f"there is no {name}")
    return digest


def load_images(repo: Repository, *, containing: str = "") -> Iterator[PulledImage]:
    """All tagged images whose tag contains that, sorted by tag."""
    for tag in [tag for tag, _ in repo.tags() if containing in tag]:
        yield replace(load_image(repo, tag), reference=tag)
