# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Pull an OCI image, or another artifact, into a repository.

Manifest and config are verified against their digests, every layer against its blob digest, its
size and its diff id. A layer that the repository has is not read; the others are read several at a
time, the largest first. Each is published when it is complete, so an interrupted pull goes on
where it stopped; config, manifest and tag come last, so what can be found by name is whole.

A manifest whose config is no image config is an artifact: its layers are kept as they are, one
object each, and it has no tree. A delta artifact is kept like any other; it is not applied.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import BinaryIO

from bootc.composefs.fetch import Fetch, WantedLayer
from bootc.composefs.layers import import_layer
from bootc.composefs.objects import ObjectCounts
from bootc.composefs.progress import Done, Event, Message, OnProgress, Skipped, one_at_a_time
from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import OCI_LAYER
from bootc.composefs.stored import (
    PulledImage,
    PulledLayer,
    PullStats,
    config_content_id,
    image_refs,
    layer_content_id,
    manifest_content_id,
    open_stream,
    write_documents,
)
from bootc.composefs.writers import WriterPool
from bootc.errors import BootcError
from bootc.linux import libc
from bootc.oci.layout import ImageSource
from bootc.oci.model import (
    PLAIN_LAYER,
    Compression,
    Manifest,
    layer_compression,
    read_config,
    read_manifest,
    verify_digest,
)

__all__ = ["Event", "OnProgress", "PulledImage", "PulledLayer", "pull"]

READERS_MAX = 4
WRITERS_MAX = 4

Meanwhile = Callable[[Sequence[PulledLayer]], None]


def pull(
    repo: Repository,
    source: ImageSource,
    *,
    reference: str,
    tag: str | None = None,
    readers: int | None = None,
    unpacked_max: int | None = None,
    zerocopy: bool = False,
    on_progress: OnProgress | None = None,
    meanwhile: Meanwhile | None = None,
) -> PulledImage:
    """Store the image that `source` offers and return it, with the members of the layers read.

    `reference` is what the image is called in messages and in the result; `tag` is the name it
    gets in the repository. `readers` is how many layers are read at once (default: one for each
    CPU), `unpacked_max` how many bytes a layer may unpack to (default: the size of the
    repository's file system). With `zerocopy`, contents that lie in files already (podman's
    storage) must not be copied, or this fails. `meanwhile` is called with the layers of an image of
    a file system, unless all were there: they are stored, but the last ones are not published yet,
    as the disk still writes. Raises `BootcError` (`FormatError` for bad data); nothing is tagged
    then.
    """
    report = one_at_a_time(on_progress)
    verify_digest(source.manifest, source.manifest_digest, f"{reference}: manifest")
    manifest = read_manifest(source.manifest, f"{reference}: manifest")
    verify_digest(source.config, manifest.config.digest, f"{reference}: config")
    wanted = _wanted_layers(source, manifest, reference)
    if not manifest.is_container:
        kind = manifest.artifact_type or manifest.config.media_type
        report(Message(text=f"{reference} is an artifact ({kind}), not an image"))
    _check_space(repo, reference, wanted)
    try:
        layers, stats = _pull_layers(
            repo,
            source,
            wanted,
            readers,
            unpacked_max,
            report,
            zerocopy=zerocopy,
            meanwhile=meanwhile if manifest.is_container else None,
        )
        pulled = write_documents(
            repo,
            reference=reference,
            manifest_digest=source.manifest_digest,
            manifest=source.manifest,
            config_digest=manifest.config.digest,
            config=source.config,
            layers=layers,
            images=existing_images(repo, manifest.config.digest),
            is_container=manifest.is_container,
        )
        if tag is not None:
            repo.tag(manifest_content_id(pulled.manifest_digest), tag)
    except OSError as error:
        hint = f"make room on the file system of {repo.path}"
        raise BootcError(
            f"cannot store {reference} in {repo.path}: {error.strerror}",
            hint=hint if error.errno == errno.ENOSPC else None,
        ) from error
    return replace(pulled, stats=stats)


def import_tar(
    repo: Repository,
    tar: BinaryIO,
    diff_id: str,
    *,
    name: str | None = None,
    unpacked_max: int | None = None,
) -> bytes:
    """Store the layer that `tar` gives, not compressed, and return its split stream's digest.

    `name` becomes a reference, `streams/refs/NAME`. Raises `FormatError` if the tar's digest isn't
    `diff_id`; nothing is published then.
    """
    content_id = layer_content_id(diff_id)
    with WriterPool(repo.writable_objects(), writer_count()) as pool:
        layer = import_layer(
            tar,
            pool,
            repo.algorithm,
            digest=diff_id,
            diff_id=diff_id,
            size=None,
            compression=Compression.NONE,
            unpacked_max=space_for_layer(repo, unpacked_max),
        )
    digest = repo.write_stream(content_id, layer.stream)
    if name is not None:
        repo.name_stream(content_id, name)
    return digest


def writer_count() -> int:
    """How many threads write objects."""
    return min(len(os.sched_getaffinity(0)), WRITERS_MAX)


def space_for_layer(repo: Repository, wanted: int | None) -> int:
    """What a layer may unpack to: `wanted`, or the size of the repository's file system."""
    if wanted is not None:
        return wanted
    space = os.fstatvfs(repo.fd)
    return space.f_blocks * space.f_frsize


def _wanted_layers(source: ImageSource, manifest: Manifest, reference: str) -> list[WantedLayer]:
    if not manifest.is_container:
        return [
            WantedLayer(id=layer.digest, descriptor=layer, tar=layer.media_type == PLAIN_LAYER)
            for layer in manifest.layers
        ]
    diff_ids = read_config(source.config, f"{reference}: config").diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise BootcError(
            f"{reference}: the manifest has {len(manifest.layers)} layers, the config "
            f"{len(diff_ids)}"
        )
    for layer in manifest.layers:
        layer_compression(layer.media_type)
    return [
        WantedLayer(id=diff_id, descriptor=layer, tar=True)
        for diff_id, layer in zip(diff_ids, manifest.layers, strict=True)
    ]


def _check_space(repo: Repository, reference: str, wanted: list[WantedLayer]) -> None:
    missing = {
        item.id: item.descriptor.size
        for item in wanted
        if repo.find_stream(layer_content_id(item.id)) is None
    }
    required = sum(missing.values())
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
    wanted: Sequence[WantedLayer],
    readers: int | None,
    unpacked_max: int | None,
    report: OnProgress,
    *,
    zerocopy: bool,
    meanwhile: Meanwhile | None,
) -> tuple[tuple[PulledLayer, ...], PullStats]:
    done: dict[str, PulledLayer] = {}
    todo: dict[str, WantedLayer] = {}
    for item in wanted:
        if item.id in done or item.id in todo:
            continue
        stored = _find_layer(repo, item)
        if stored is None:
            todo[item.id] = item
        else:
            done[item.id] = PulledLayer(diff_id=item.id, digest=stored)
            report(Skipped(id=item.id))
    stats = PullStats()
    if todo:
        ids = {item.id for item in wanted}
        last: list[WantedLayer] = []
        limit = space_for_layer(repo, unpacked_max)
        at_once = readers or min(len(os.sched_getaffinity(0)), READERS_MAX)
        store = repo.writable_objects()
        before = repo.counts()
        inlined = streams = 0
        with ExitStack() as stack:
            pool = stack.enter_context(WriterPool(store, writer_count()))
            fetch = Fetch(source, pool, repo.algorithm, limit, report, zerocopy=zerocopy)
            with closing(fetch.run(list(todo.values()), at_once)) as results:
                for item, layer in results:
                    digest = repo.ensure_object(layer.stream)
                    done[item.id] = PulledLayer(
                        diff_id=item.id, digest=digest, entries=layer.entries
                    )
                    inlined += layer.inlined
                    streams += len(layer.stream)
                    if len(done) < len(ids):
                        _publish(repo, item, digest, report)
                    else:
                        last.append(item)
        stats = _stats(before, repo.counts(), inlined, len(todo), streams)
        # What the threads' buffers took is the room for the tree that comes next.
        libc.trim_memory()
        if meanwhile is not None:
            with repo.syncing():
                meanwhile([done[item.id] for item in wanted])
        for item in last:
            _publish(repo, item, done[item.id].digest, report)
    return tuple(done[item.id] for item in wanted), stats


def _publish(repo: Repository, item: WantedLayer, digest: bytes, report: OnProgress) -> None:
    repo.publish_streams({layer_content_id(item.id): digest})
    report(Done(id=item.id, transferred=item.descriptor.size))


def _find_layer(repo: Repository, item: WantedLayer) -> bytes | None:
    """The layer's split stream if it is in the repository as what it should be.

    A plain tar may have been stored as an artifact's opaque blob; the image needs its members.
    """
    content_id = layer_content_id(item.id)
    stored = repo.find_stream(content_id)
    if stored is None or not item.tar:
        return stored
    return stored if open_stream(repo, content_id).content_type == OCI_LAYER else None


def _stats(
    before: ObjectCounts, after: ObjectCounts, inlined: int, streams: int, size: int
) -> PullStats:
    """What was counted, less the `streams` split streams, which are `size` bytes."""

    def made(counts: ObjectCounts) -> int:
        return counts.written + counts.reflinked + counts.hardlinked + counts.copied

    return PullStats(
        new=max(0, made(after) - made(before) - streams),
        present=after.existing - before.existing,
        stored=max(0, after.new_bytes - before.new_bytes - size),
        inlined=inlined,
    )


def existing_images(repo: Repository, config_digest: str) -> dict[str, bytes]:
    """The EROFS images of a config that is in the repository already: pulling again keeps them."""
    content_id = config_content_id(config_digest)
    if repo.find_stream(content_id) is None:
        return {}
    return image_refs(open_stream(repo, content_id))
