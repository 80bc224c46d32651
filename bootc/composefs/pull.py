# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pull an OCI image into a repository.

Manifest and config are verified against their digests, every layer against its blob digest and
its diff id. A layer that the repository has is not read. Each layer is published when it is
complete, so an interrupted pull goes on where it stopped; config, manifest and tag come last, so
what can be found by name is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from bootc.composefs.layers import import_layer
from bootc.composefs.repository import Repository
from bootc.composefs.stored import (
    PulledImage,
    PulledLayer,
    config_content_id,
    image_refs,
    layer_content_id,
    manifest_content_id,
    open_stream,
    write_documents,
)
from bootc.composefs.writers import WriterPool
from bootc.errors import BootcError
from bootc.oci.layout import ImageSource
from bootc.oci.model import (
    Descriptor,
    Manifest,
    layer_compression,
    read_config,
    read_manifest,
    verify_digest,
)

__all__ = ["Progress", "ProgressKind", "PulledImage", "PulledLayer", "pull"]


class ProgressKind(StrEnum):
    STARTED = "started"
    PROGRESS = "progress"
    SKIPPED = "skipped"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What happens to a layer: `id` is its diff id; bytes are those of the blob."""

    kind: ProgressKind
    id: str
    fetched: int = 0
    total: int | None = None


OnProgress = Callable[[Progress], None]


def pull(
    repo: Repository,
    source: ImageSource,
    *,
    reference: str,
    tag: str | None = None,
    workers: int = 2,
    on_progress: OnProgress | None = None,
) -> PulledImage:
    """Store the image that `source` offers and return it, with the members of the layers read.

    `reference` is what the image is called in messages and in the result; `tag` is the name it
    gets in the repository.
    """
    verify_digest(source.manifest, source.manifest_digest, f"{reference}: manifest")
    manifest = read_manifest(source.manifest, f"{reference}: manifest")
    if not manifest.is_container:
        raise BootcError(
            f"{reference} is no image of a file system but a {manifest.config.media_type}"
        )
    verify_digest(source.config, manifest.config.digest, f"{reference}: config")
    diff_ids = read_config(source.config, f"{reference}: config").diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise BootcError(
            f"{reference}: the manifest has {len(manifest.layers)} layers, the config "
            f"{len(diff_ids)}"
        )
    wanted = list(zip(diff_ids, manifest.layers, strict=True))
    _check_space(repo, reference, wanted)
    try:
        layers = _pull_layers(repo, source, wanted, workers, on_progress or _ignore)
        pulled = write_documents(
            repo,
            reference=reference,
            manifest_digest=source.manifest_digest,
            manifest=source.manifest,
            config_digest=manifest.config.digest,
            config=source.config,
            layers=layers,
            images=_existing_images(repo, manifest),
        )
        if tag is not None:
            repo.tag(manifest_content_id(pulled.manifest_digest), tag)
    except OSError as error:
        raise BootcError(f"cannot store {reference} in {repo.path}: {error.strerror}") from error
    return pulled


def _ignore(progress: Progress) -> None:
    """Nobody wants to know."""


def _check_space(repo: Repository, reference: str, wanted: list[tuple[str, Descriptor]]) -> None:
    required = sum(
        layer.size
        for diff_id, layer in wanted
        if repo.find_stream(layer_content_id(diff_id)) is None
    )
    space = os.fstatvfs(repo.fd)
    available = space.f_bavail * space.f_frsize
    if required > available:
        raise BootcError(
            f"Insufficient free space for {reference} (available: {_mebibytes(available)} "
            f"required: {_mebibytes(required)})",
            hint=f"make room on the file system of {repo.path}",
        )


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _pull_layers(
    repo: Repository,
    source: ImageSource,
    wanted: list[tuple[str, Descriptor]],
    workers: int,
    report: OnProgress,
) -> tuple[PulledLayer, ...]:
    layers: list[PulledLayer] = []
    with WriterPool(repo.writable_objects(), workers) as pool:
        for diff_id, descriptor in wanted:
            stored = repo.find_stream(layer_content_id(diff_id))
            if stored is not None:
                report(Progress(kind=ProgressKind.SKIPPED, id=diff_id))
                layers.append(PulledLayer(diff_id=diff_id, digest=stored))
            else:
                layers.append(_pull_layer(repo, source, diff_id, descriptor, pool, report))
    return tuple(layers)


def _pull_layer(
    repo: Repository,
    source: ImageSource,
    diff_id: str,
    descriptor: Descriptor,
    pool: WriterPool,
    report: OnProgress,
) -> PulledLayer:
    compression = layer_compression(descriptor.media_type)
    total = descriptor.size
    report(Progress(kind=ProgressKind.STARTED, id=diff_id, total=total))
    fetched = 0

    def on_bytes(count: int) -> None:
        nonlocal fetched
        fetched += count
        report(Progress(kind=ProgressKind.PROGRESS, id=diff_id, fetched=fetched, total=total))

    with source.open_blob(descriptor.digest) as blob:
        stream, entries = import_layer(
            blob,
            pool,
            repo.algorithm,
            digest=descriptor.digest,
            diff_id=diff_id,
            compression=compression,
            on_bytes=on_bytes,
        )
    digest = repo.write_stream(layer_content_id(diff_id), stream)
    report(Progress(kind=ProgressKind.DONE, id=diff_id, fetched=fetched, total=total))
    return PulledLayer(diff_id=diff_id, digest=digest, entries=tuple(entries))


def _existing_images(repo: Repository, manifest: Manifest) -> dict[str, bytes]:
    """The EROFS images of a config that is in the repository already: pulling again keeps them."""
    content_id = config_content_id(manifest.config.digest)
    if repo.find_stream(content_id) is None:
        return {}
    return image_refs(open_stream(repo, content_id))
