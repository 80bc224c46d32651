# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Contents on their way from whoever reads them into the store.

Small ones travel in batches, so that a hand-over is paid once for many; a large one is written by
the reader into an unnamed file and only finished here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.hashing import DigestProcess, Request
from bootc.composefs.objects import Compute, ObjectStore, Route
from bootc.linux import filelease
from bootc.tree import External, Leaf


@dataclass(slots=True, eq=False)
class Item:
    """A content on its way into the store: `data`, or the unnamed file `fd` that holds it, or,
    with neither, an object that is there already, `digest`. `route` is how it came into `fd`;
    HARDLINKED means that `fd` is somebody else's file, to be linked, or copied if that fails.

    With both, `data` is what `fd` holds, so that it need not be read again. `twin` serves the same
    end for large files: the file that `fd` is a clone of, with a lease on it (`filelease`). Its
    pages are in memory, those of the clone are not.

    `measured` is the digest, too, of contents still to be stored: as the kernel has it of the
    sealed file where they come from.
    """

    leaf: Leaf
    size: int
    data: bytes | memoryview = b""
    fd: int = -1
    twin: int = -1
    digest: bytes = b""
    measured: bytes = b""
    route: Route = Route.WRITTEN

    @property
    def files(self) -> int:
        """The descriptors that it holds."""
        return (self.fd >= 0) + (self.twin >= 0)

    @property
    def is_read(self) -> bool:
        """Whether its digest is that of a file, which is read for it."""
        return self.fd >= 0 and not self.data and not self.measured

    @property
    def is_hashed(self) -> bool:
        """Whether its digest is that of what is in memory."""
        return bool(self.data) and not self.measured

    def close_twin(self) -> None:
        if self.twin >= 0:
            fd, self.twin = self.twin, -1
            os.close(fd)


@dataclass(slots=True, eq=False)
class Batch:
    """Contents that are stored one after another; `done` is set however that ends."""

    items: list[Item] = field(default_factory=list)
    size: int = 0
    memory: int = 0
    """Bytes of contents, and of what lies between them, that are held in memory."""
    files: int = 0
    """Open files."""
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    request: Request | None = None
    """The digests of what is in memory, if they were asked for."""
    is_queued: bool = False
    """Whether a thread stores it."""

    def discard(self, store: ObjectStore) -> None:
        """Give up what was never stored."""
        for item in self.items:
            if item.fd >= 0:
                fd, item.fd = item.fd, -1
                store.discard(fd)
            item.close_twin()


class WriterPool:
    """Stores batches, as long as the `with` block runs; leaving it by an error drops what has not
    begun.

    Where the kernel computes the digests threads do that: enabling verity waits in the kernel,
    outside Python's lock. Elsewhere another process computes the digests, and a thread has only the
    large files: with small contents it would take Python's lock from whoever reads, at each system
    call. So they are stored in `finish`.
    """

    def __init__(self, store: ObjectStore, workers: int = 2) -> None:
        self.store = store
        self._hashing = DigestProcess()
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._kept: set[Batch] = set()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"objects-{number}", daemon=True)
            for number in range(max(1, workers) if store.measures else 1)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stopped = True
            self._hashing.give_up()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._hashing.close()
        try:
            while True:
                left = self._queue.get_nowait()
                if left is not None:
                    left.discard(self.store)
        except Empty:
            pass
        while self._kept:
            self._kept.pop().discard(self.store)

    def submit(self, batch: Batch) -> None:
        """Begin to store a batch; call `finish` for it."""
        if self.store.measures or any(item.is_read for item in batch.items):
            batch.is_queued = True
            self._queue.put(batch)
            return
        self._kept.add(batch)
        batch.request = self._ask(batch)

    def is_ready(self, batch: Batch) -> bool:
        """Whether `finish` would not wait for anybody."""
        if batch.request is None:
            return batch.done.is_set()
        return self._hashing.is_ready(batch.request)

    def finish(self, batch: Batch) -> None:
        """Return when all of a batch is stored. Raises what kept it from that."""
        if batch.is_queued:
            batch.done.wait()
        else:
            self._kept.discard(batch)
            self._try(batch)
        if batch.error is not None:
            raise batch.error

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            self._try(batch)

    def _try(self, batch: Batch) -> None:
        try:
            if not self._stopped:
                self._store_all(batch)
        except BaseException as error:  # handed to whoever waits for the batch
            batch.error = error
        finally:
            batch.discard(self.store)
            batch.done.set()

    def _store_all(self, batch: Batch) -> None:
        store = self.store
        digests = self._digests(batch)
        for item in batch.items:
            known = next(digests, b"") if item.is_hashed else item.measured
            compute = partial(self._digest, item, known)
            if item.route is Route.HARDLINKED:
                fd, item.fd = item.fd, -1
                try:
                    item.digest = self._link(fd, item, compute)
                finally:
                    os.close(fd)
            elif item.fd >= 0:
                fd, item.fd = item.fd, -1
                item.digest = store.adopt(fd, item.size, route=item.route, compute=compute)
                item.close_twin()
            elif not item.digest:
                item.digest = store.store(item.data, digest=known or None)
            item.data = b""
            item.leaf.content = External(item.size, item.digest)

    def _ask(self, batch: Batch) -> Request:
        contents = [item.data for item in batch.items if item.is_hashed]
        return self._hashing.ask(contents, self.store.algorithm)

    def _digests(self, batch: Batch) -> Iterator[bytes]:
        """Those of the contents in memory, where the kernel computes none."""
        if self.store.measures:
            return iter(())
        request, batch.request = batch.request or self._ask(batch), None
        return iter(self._hashing.take(request))

    def _digest(self, item: Item, known: bytes, fd: int, size: int, algorithm: Algorithm) -> bytes:
        """The digest of what `fd` holds, by the cheapest way to read that."""
        if known:
            return known
        if item.data:
            return digest_bytes(item.data, algorithm)
        if item.twin >= 0:
            found = self._hashing.digest(item.twin, size, algorithm)
            if filelease.holds(item.twin):
                return found
        return self._hashing.digest(fd, size, algorithm)

    def _link(self, fd: int, item: Item, compute: Compute) -> bytes:
        linked = self.store.link(fd, item.size, compute=compute)
        if linked is not None:
            return linked
        return self.store.store(item.data) if item.data else self.store.import_file(fd)
