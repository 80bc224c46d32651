# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Several layers at once: threads read them, the largest first, the caller publishes each.

The first failure ends all: what waits for data is woken, what runs notices at its next piece, and
only when every thread has ended is the failure raised.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from bootc.composefs.digest import Algorithm
from bootc.composefs.layers import ImportedLayer, import_blob, import_layer
from bootc.composefs.progress import OnProgress, Progress, Started
from bootc.composefs.writers import WriterPool
from bootc.errors import BootcError
from bootc.oci.layout import FilesSource, ImageSource
from bootc.oci.model import Descriptor, layer_compression
from bootc.records import dataclass

if TYPE_CHECKING:
    from bootc.storage.layer import LayerReader


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLayer:
    """A layer of a manifest: `id` is its diff id, or the blob's digest where it is no `tar`."""

    id: str
    descriptor: Descriptor
    tar: bool


class _Cancelled(BootcError):
    """Another layer failed first."""


_Result = tuple[WantedLayer, ImportedLayer | BaseException]


class Fetch:
    """Reads layers of one image with the writers of `pool`; see `pull.pull` for the limit."""

    def __init__(
        self,
        source: ImageSource,
        pool: WriterPool,
        algorithm: Algorithm,
        unpacked_max: int,
        report: OnProgress,
        *,
        zerocopy: bool = False,
    ) -> None:
        self._source = source
        self._pool = pool
        self._algorithm = algorithm
        self._unpacked_max = unpacked_max
        self._report = report
        self._zerocopy = zerocopy
        self._waiting: SimpleQueue[WantedLayer] = SimpleQueue()
        self._results: SimpleQueue[_Result] = SimpleQueue()
        self._stopped = threading.Event()

    def run(
        self, wanted: Sequence[WantedLayer], readers: int
    ) -> Generator[tuple[WantedLayer, ImportedLayer], None, None]:
        """Each layer when its contents are stored, in no particular order. Close it to give up."""
        for item in sorted(wanted, key=lambda item: item.descriptor.size, reverse=True):
            self._waiting.put(item)
        threads = [
            threading.Thread(target=self._work, name=f"layers-{number}", daemon=True)
            for number in range(min(readers, len(wanted)))
        ]
        for thread in threads:
            thread.start()
        left = len(wanted)
        try:
            while left:
                item, found = self._results.get()
                left -= 1
                if isinstance(found, BaseException):
                    raise found
                yield item, found
        finally:
            if left:
                self._stopped.set()
                self._source.cancel()
            for thread in threads:
                thread.join()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                item = self._waiting.get_nowait()
            except Empty:
                return
            try:
                found: ImportedLayer | BaseException = self._import(item)
            except BaseException as error:  # handed to the thread that waits for it
                found = error
            self._results.put((item, found))

    def _import(self, item: WantedLayer) -> ImportedLayer:
        if isinstance(self._source, FilesSource):
            with self._source.open_layer(item.id) as reader:
                return self._import_stored(item, reader)
        return self._import_blob(item)

    def _import_stored(self, item: WantedLayer, reader: LayerReader) -> ImportedLayer:
        # start-up time: most images come from elsewhere
        from bootc.composefs.storage_layers import import_stored_layer

        return import_stored_layer(
            reader,
            self._pool,
            self._algorithm,
            diff_id=item.id,
            unpacked_max=self._unpacked_max,
            zerocopy=self._zerocopy,
            on_bytes=self._started(item, reader.diff_size),
        )

    def _started(self, item: WantedLayer, total: int | None) -> Callable[[int], None]:
        """Say that a layer is read; the result takes note of each piece, and ends what failed."""
        self._report(Started(id=item.id, total=total))
        fetched = 0

        def on_bytes(count: int) -> None:
            nonlocal fetched
            if self._stopped.is_set():
                raise _Cancelled(f"{item.id}: another layer failed")
            fetched += count
            self._report(Progress(id=item.id, fetched=fetched, total=total))

        return on_bytes

    def _import_blob(self, item: WantedLayer) -> ImportedLayer:
        descriptor = item.descriptor
        total = descriptor.size
        on_bytes = self._started(item, total)
        with self._source.open_blob(descriptor.digest) as blob:
            if not item.tar:
                return import_blob(
                    blob,
                    self._pool,
                    self._algorithm,
                    digest=descriptor.digest,
                    size=total,
                    on_bytes=on_bytes,
                )
            return import_layer(
                blob,
                self._pool,
                self._algorithm,
                digest=descriptor.digest,
                diff_id=item.id,
                size=total,
                compression=layer_compression(descriptor.media_type),
                unpacked_max=self._unpacked_max,
                on_bytes=on_bytes,
            )
