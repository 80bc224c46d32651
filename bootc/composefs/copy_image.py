# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Copies an image from one repository to another, layer by layer, as splitdirfdstreams.

The destination believes nothing: every layer is hashed and has to have its diff id, whatever the
algorithms of the two repositories are. Layers that are there are not sent. An artifact's blobs stay
blobs. EROFS images are made anew, in the destination's formats.

Without `zerocopy` extents are shared where the file system can, else contents are copied; nothing
in the source changes. With it they are shared, else hard-linked, never copied. Then the files of
the source become those of the destination: where that has fs-verity, they get it. What is needed
for it is checked before anything is sent: `check_zerocopy`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from bootc import fs
from bootc.composefs.dirfdstream_export import export_layer
from bootc.composefs.dirfdstream_fds import Incoming
from bootc.composefs.dirfdstream_import import PipeReader, Received, receive_layer
from bootc.composefs.finalize_image import finalize_image
from bootc.composefs.objects import TEMPORARY, ObjectCounts
from bootc.composefs.progress import Done, OnProgress, Skipped, Started, ignore
from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import OCI_LAYER
from bootc.composefs.stored import (
    PulledImage,
    PulledLayer,
    PullStats,
    layer_content_id,
    load_image,
    manifest_content_id,
    open_stream,
)
from bootc.errors import BootcError
from bootc.linux import libc, reflink


def copy_image(
    repo: Repository,
    source: Repository,
    image: str,
    *,
    tag: str | None = None,
    zerocopy: bool = False,
    on_progress: OnProgress | None = None,
) -> PulledImage:
    """Copy the image that `image` (a tag or `@DIGEST`) names in `source` into `repo`.

    It gets the tag `tag`, or none. Raises `BootcError`; nothing is published then but layers that
    were complete.
    """
    if os.path.samestat(os.fstat(repo.fd), os.fstat(source.fd)):
        raise BootcError(
            f"{repo.path} is the source and the destination",
            hint="give the image another name with `cfsctl oci tag`",
        )
    report = on_progress or ignore
    found = load_image(source, image)
    repo.need_writable()
    if zerocopy:
        check_zerocopy(repo, source, found)
    layers: dict[str, PulledLayer] = {}
    counts: list[Received] = []
    for layer in found.layers:
        if layer.diff_id in layers:
            continue
        present = _find_layer(repo, layer.diff_id, tar=found.is_container)
        if present is not None:
            report(Skipped(id=layer.diff_id))
            layers[layer.diff_id] = PulledLayer(diff_id=layer.diff_id, digest=present)
            continue
        report(Started(id=layer.diff_id))
        received = send_layer(source, repo, layer.diff_id, zerocopy=zerocopy)
        counts.append(received)
        layers[layer.diff_id] = PulledLayer(
            diff_id=layer.diff_id, digest=received.digest, entries=received.entries
        )
        report(Done(id=layer.diff_id, transferred=received.counts.new_bytes))
    done = finalize_image(
        repo,
        found.manifest,
        found.config,
        [layers[layer.diff_id] for layer in found.layers],
        tag=tag,
    )
    return replace(done, stats=_stats(counts))


def send_layer(
    source: Repository, repo: Repository, diff_id: str, *, zerocopy: bool = False
) -> Received:
    """Let `repo` receive a layer, or an artifact's blob, of `source`."""
    with ExitStack() as stack:
        outgoing = stack.enter_context(export_layer(source, diff_id, lambda: None))
        layout = outgoing.layout
        incoming = stack.enter_context(Incoming(outgoing.take(layout.total), layout.directories))
        return receive_layer(
            repo, PipeReader(incoming.stream), incoming.directories, diff_id, zerocopy=zerocopy
        )


def _find_layer(repo: Repository, diff_id: str, *, tar: bool) -> bytes | None:
    """The layer in the destination, if it is stored as what the image needs."""
    content_id = layer_content_id(diff_id)
    digest = repo.find_stream(content_id)
    if digest is None or not tar:
        return digest
    return digest if open_stream(repo, content_id).content_type == OCI_LAYER else None


def _stats(received: list[Received]) -> PullStats:
    def total(counts: list[ObjectCounts], name: str) -> int:
        return sum(getattr(item, name) for item in counts)

    counts = [item.counts for item in received]
    return PullStats(
        new=total(counts, "new"),
        present=total(counts, "existing"),
        stored=total(counts, "new_bytes"),
        inlined=sum(item.inlined for item in received),
    )


def check_zerocopy(repo: Repository, source: Repository, image: PulledImage) -> None:
    """Refuse what `zerocopy` cannot do: other algorithms, or files that can't be shared.

    The second is tried out with the image's manifest, and nothing is left of it.
    """
    if repo.algorithm is not source.algorithm:
        raise BootcError(
            f"--zerocopy needs the same hash algorithm in both: {source.path} has "
            f"{source.algorithm.value}, {repo.path} {repo.algorithm.value}",
            hint="leave --zerocopy out: then the contents are hashed anew",
        )
    stream = open_stream(source, manifest_content_id(image.manifest_digest))
    with _opened(source.open_object(stream.only_object())) as sample:
        if not (_can_clone(repo, sample) or _can_link(repo, sample)):
            raise BootcError(
                f"--zerocopy cannot share files of {source.path} with {repo.path}: "
                "they can be neither reflinked nor hard-linked",
                hint="put both on one file system and be root, or leave --zerocopy out",
            )


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _can_clone(repo: Repository, sample: int) -> bool:
    store = repo.writable_objects()
    fd = store.create()
    try:
        return reflink.clone(fd, sample)
    finally:
        store.discard(fd)


def _can_link(repo: Repository, sample: int) -> bool:
    name = fs.temporary_name(TEMPORARY)
    with fs.open_directory("objects", dir_fd=repo.fd) as objects:
        try:
            libc.link_fd(sample, objects, name)
        except OSError:
            return False
        os.unlink(name, dir_fd=objects)
    return True
