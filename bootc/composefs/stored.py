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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bootc.composefs.repository import NotFoundError, Repository
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
class PulledImage:
    """An image in the repository. `manifest_id` and `config_id` name their split streams."""

    reference: str
    manifest_digest: str
    config_digest: str
    manifest_id: str
    config_id: str
    manifest: bytes = field(repr=False)
    config: bytes = field(repr=False)
    layers: tuple[PulledLayer, ...]
    images: Mapping[str, bytes] = field(default_factory=dict)


def layer_content_id(diff_id: str) -> str:
    return f"oci-layer-{diff_id}"


def config_content_id(digest: str) -> str:
    return f"oci-config-{digest}"


def manifest_content_id(digest: str) -> str:
    return f"oci-manifest-{digest}"


def image_key(*, boot: bool, erofs_version: int) -> str:
    """The name under which a config refers to an EROFS image made of it."""
    return f"{_IMAGE_KEY}{'.boot' if boot else ''}{'' if erofs_version == 2 else '.v1'}"


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
) -> PulledImage:
    """Store and publish config and manifest. The layers must be published already."""
    writer = SplitStreamWriter(repo.algorithm, OCI_CONFIG)
    for layer in layers:
        writer.named_ref(layer.diff_id, layer.digest)
    for key in sorted(images):
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
    )


def attach_images(
    repo: Repository, pulled: PulledImage, images: Mapping[str, bytes]
) -> PulledImage:
    """Let the config refer to EROFS images by `image_key`, so that they live as long as it does."""
    merged = {**pulled.images, **images}
    if merged == pulled.images:
        return pulled
    return write_documents(
        repo,
        reference=pulled.reference,
        manifest_digest=pulled.manifest_digest,
        manifest=pulled.manifest,
        config_digest=pulled.config_digest,
        config=pulled.config,
        layers=pulled.layers,
        images=merged,
    )


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
    config_digest = read_manifest(manifest, content_id).config.digest
    config_id = _ref(stream, f"config:{config_digest}")
    source = config_content_id(config_digest)
    config_stream = read_stream_object(repo, config_id, source)
    if config_stream.content_type != OCI_CONFIG:
        raise BootcError(f"{name} is an artifact, not an image of a file system")
    config = repo.read_object(config_stream.only_object())
    if verified:
        verify_digest(config, config_digest, source)
    return PulledImage(
        reference=name,
        manifest_digest=manifest_digest,
        config_digest=config_digest,
        manifest_id=manifest_id.hex(),
        config_id=config_id.hex(),
        manifest=manifest,
        config=config,
        layers=tuple(
            PulledLayer(diff_id=diff_id, digest=_ref(config_stream, diff_id))
            for diff_id in read_config(config, source).diff_ids
        ),
        images=image_refs(config_stream),
    )


def _ref(stream: SplitStream, name: str) -> bytes:
    digest = stream.named_refs.get(name)
    if digest is None:
        raise FormatError(stream.source, "named refs", f"there is no {name}")
    return digest


def load_images(repo: Repository) -> Iterator[PulledImage]:
    """All tagged images, sorted by tag."""
    for tag, _ in repo.tags():
        yield replace(load_image(repo, tag), reference=tag)
