# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Makes an image of layers that came one by one: the last step of a transfer.

Nothing that the sender says is relied upon: the documents' digests are computed, the manifest must
name the config, the layers must be those of the config (of an artifact: of the manifest), in order,
and be stored. The EROFS images are made before the documents are published, the tag comes last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from bootc.composefs.committed import commit_pulled
from bootc.composefs.pull import existing_images
from bootc.composefs.repository import NotFoundError, Repository, escape_tag
from bootc.composefs.splitstream import OCI_LAYER
from bootc.composefs.stored import (
    PulledImage,
    PulledLayer,
    layer_content_id,
    manifest_content_id,
    open_stream,
    write_documents,
)
from bootc.errors import FormatError
from bootc.oci.model import Manifest, read_config, read_manifest, verify_digest

_SOURCE = "the manifest"


class MissingLayerError(NotFoundError):
    """A layer that the image consists of is not in the repository."""

    def __init__(self, diff_id: str, path: str) -> None:
        super().__init__(f"there is no layer {diff_id} in {path}", hint="send that layer first")
        self.diff_id = diff_id


def layer_ids(manifest: Manifest, config: bytes) -> list[str]:
    """What the layers are called in a repository: diff ids, or an artifact's blobs' digests."""
    if not manifest.is_container:
        return [layer.digest for layer in manifest.layers]
    diff_ids = list(read_config(config, "the config").diff_ids)
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(
            "the config",
            ".rootfs.diff_ids",
            f"are {len(diff_ids)}, but the manifest has {len(manifest.layers)} layers",
        )
    return diff_ids


def finalize_image(
    repo: Repository,
    manifest_json: bytes,
    config_json: bytes,
    layers: Sequence[PulledLayer],
    *,
    tag: str | None = None,
) -> PulledImage:
    """Publish the image, with its EROFS image if it is one of a file system, and tag it.

    Raises `MissingLayerError`, or `FormatError` for documents and layers that don't fit together.
    """
    if tag is not None:
        escape_tag(tag)
    manifest_digest = _digest(manifest_json)
    manifest = read_manifest(manifest_json, _SOURCE)
    config_digest = manifest.config.digest
    verify_digest(config_json, config_digest, "the config")
    wanted = layer_ids(manifest, config_json)
    told = [layer.diff_id for layer in layers]
    if told != wanted:
        raise FormatError(
            "the list of layers", None, f"is not that of the image: {told} instead of {wanted}"
        )
    for layer in layers:
        _check_layer(repo, layer, tar=manifest.is_container)
    pulled = PulledImage(
        reference=tag or f"@{manifest_digest}",
        manifest_digest=manifest_digest,
        config_digest=config_digest,
        manifest_id="",
        config_id="",
        manifest=manifest_json,
        config=config_json,
        layers=tuple(layers),
        images=existing_images(repo, config_digest),
        is_container=manifest.is_container,
    )
    done = commit_pulled(repo, pulled).pulled
    if not done.manifest_id:
        # An artifact, or an image whose EROFS images are known already.
        done = write_documents(
            repo,
            reference=done.reference,
            manifest_digest=done.manifest_digest,
            manifest=done.manifest,
            config_digest=done.config_digest,
            config=done.config,
            layers=done.layers,
            images=done.images,
            is_container=done.is_container,
        )
    if tag is not None:
        repo.tag(manifest_content_id(manifest_digest), tag)
    return replace(done, trusted=True)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _check_layer(repo: Repository, layer: PulledLayer, *, tar: bool) -> None:
    content_id = layer_content_id(layer.diff_id)
    stored = repo.find_stream(content_id)
    if stored is None:
        raise MissingLayerError(layer.diff_id, repo.path)
    if stored != layer.digest:
        raise FormatError(
            content_id, None, f"is {stored.hex()}, but was said to be {layer.digest.hex()}"
        )
    if tar and open_stream(repo, content_id).content_type != OCI_LAYER:
        raise FormatError(content_id, None, "is a blob, but the image needs a layer")
