# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What there is to say of an image in a repository, as JSON: for a terminal and for a wire."""

from __future__ import annotations

from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.stored import PulledImage, find_referrers, image_key
from bootc.jsonutil import Json
from bootc.oci.model import read_config, read_manifest


def describe_image(repo: Repository, image: PulledImage) -> dict[str, Json]:
    """A line of a list of images; its `reference` is the name."""
    manifest = read_manifest(image.manifest, image.manifest_digest)
    architecture = system = ""
    created = None
    if image.is_container:
        config = read_config(image.config, image.config_digest)
        architecture, system, created = config.architecture, config.os, config.created
    return {
        "name": image.reference,
        "manifest_digest": image.manifest_digest,
        "is_container": image.is_container,
        "architecture": architecture,
        "os": system,
        "created": created,
        "layer_count": len(manifest.layers),
        "referrer_count": len(find_referrers(repo, image.manifest_digest)),
    }


def inspect_image(repo: Repository, image: PulledImage) -> dict[str, Json]:
    """Its documents as they were pulled, and the digests of what belongs to it."""
    value: dict[str, Json] = {
        "manifest": image.manifest.decode("utf-8", "replace"),
        "config": image.config.decode("utf-8", "replace"),
        "referrers": list(find_referrers(repo, image.manifest_digest)),
    }
    for field, boot in (("composefs_erofs", False), ("composefs_boot_erofs", True)):
        found = image.images.get(image_key(boot=boot, erofs_version=repo.erofs_version))
        value[field] = None if found is None else found.hex()
    return value


def erofs_image_name(repo: Repository, image: PulledImage, *, boot: bool) -> str:
    """The name, in `images`, of the EROFS image that was made of it. Raises `NotFoundError`."""
    for version in repo.erofs_versions:
        found = image.images.get(image_key(boot=boot, erofs_version=version))
        if found is not None:
            return found.hex()
    raise NotFoundError(
        f"{image.reference} has no {'bootable ' if boot else ''}EROFS image",
        hint=f"pull it again{' with --bootable' if boot else ''}",
    )
