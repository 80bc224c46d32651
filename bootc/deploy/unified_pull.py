# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The two halves of a pull by way of bootc's container storage (see `unified`), as they are told:
podman's as the pull, the one into the repository as the import.
"""

from __future__ import annotations

import logging
from collections.abc import Set

from bootc.composefs.progress import Done, Event, OnProgress, Progress, Skipped, Started
from bootc.deploy.progress import Observer, Stage
from bootc.errors import advised
from bootc.log import show_size, step
from bootc.oci.layout import FilesSource, ImageSource
from bootc.oci.model import read_config, read_manifest
from bootc.oci.reference import ImageReference
from bootc.podman.fetch import Fetched, fetch_image
from bootc.podman.pull import Blob, BlobStatus, PullLine, Text
from bootc.podman.storage import BootcStorage

_log = logging.getLogger(__name__)


def fetch(
    storage: BootcStorage, target: ImageReference, offered: ImageSource, observer: Observer
) -> Fetched:
    """Pull the image into the storage; the observer is told of it as of any pull.

    Of `offered` only manifest and config may be read from now on.
    """
    if isinstance(offered, FilesSource):
        # podman copies out of the very storage whose locks we hold.
        offered.release()
    observer.stage(Stage.PULLING)
    told = PodmanProgress(offered, observer.report, present=storage.layers())
    retry = "try again: layers that are complete are kept"
    with (
        step(f"pull {target} into bootc's container storage"),
        advised("the image was not pulled", retry),
    ):
        fetched = fetch_image(storage, target, told)
    told.end()
    return fetched


class Importing(Observer):
    """For the second half of a unified pull: what was the pull is the import now."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def begin(self, source: ImageSource) -> None:
        """It began when podman did."""

    def stage(self, stage: Stage) -> None:
        if stage is Stage.PULLING:
            self._observer.stage(Stage.IMPORTING)
        elif stage is not Stage.IMPORTING:
            self._observer.stage(stage)

    def report(self, event: Event) -> None:
        """The layers' bytes were counted already."""

    def end(self) -> None:
        self._observer.end()


class PodmanProgress:
    """Makes events of what podman tells while it pulls `offered`; a callable.

    podman knows layers by their blobs' digests, everybody else by their diff ids. One before 5.9
    only says which blob it comes to, be it there or not; all are done when it comes to the config.
    """

    def __init__(
        self, offered: ImageSource, report: OnProgress, *, present: Set[str] = frozenset()
    ) -> None:
        """`present` are the diff ids of the layers that podman need not pull."""
        self._present = present
        manifest = read_manifest(offered.manifest, "manifest")
        ids = read_config(offered.config, "config").diff_ids
        self._layers = {
            layer.digest: (diff_id, layer.size)
            for diff_id, layer in zip(ids, manifest.layers, strict=False)
        }
        self._report = report
        self._running: set[str] = set()
        self._ended: set[str] = set()

    def __call__(self, line: PullLine) -> None:
        match line:
            case Text():
                self._text(line)
            case Blob():
                self._blob(line)

    def end(self) -> None:
        """All is there; a layer that nothing was heard of was there before."""
        for digest in self._layers:
            if digest in self._running:
                self._done(digest)
            else:
                self._skipped(digest)

    def _text(self, line: Text) -> None:
        _log.info("  %s", line.text)
        blob = line.blob()
        if blob is None:
            if line.text.startswith("Copying config"):
                for digest in sorted(self._running):
                    self._done(digest)
        elif line.blob_was_here() or self._layers.get(blob, ("", 0))[0] in self._present:
            self._skipped(blob)
        else:
            self._begin(blob)

    def _blob(self, line: Blob) -> None:
        match line.status:
            case BlobStatus.PULLING:
                self._begin(line.id)
                if line.id in self._running:
                    diff_id, size = self._layers[line.id]
                    self._report(Progress(id=diff_id, fetched=min(line.current, size), total=size))
            case BlobStatus.SUCCESS:
                self._begin(line.id)
                self._done(line.id)
            case BlobStatus.SKIPPED:
                self._skipped(line.id)

    def _begin(self, digest: str) -> None:
        if digest in self._layers and digest not in self._running | self._ended:
            self._running.add(digest)
            diff_id, size = self._layers[digest]
            self._report(Started(id=diff_id, total=size))

    def _done(self, digest: str) -> None:
        if digest in self._running:
            self._running.discard(digest)
            self._ended.add(digest)
            diff_id, size = self._layers[digest]
            _log.info("  %s: %s", digest.partition(":")[2][:12], show_size(size))
            self._report(Done(id=diff_id, transferred=size))

    def _skipped(self, digest: str) -> None:
        if digest in self._layers and digest not in self._running | self._ended:
            self._ended.add(digest)
            self._report(Skipped(id=self._layers[digest][0]))
