# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Worker threads that write objects: enabling verity waits in the kernel, outside Python's lock.

Small contents travel in batches, so that a hand-over is paid once for many; a large one is
written by the reader into an unnamed file and only finished here.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd
from bootc.composefs.hashing import DigestProcess
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

    def close_twin(self) -> None:
        if self.twin >= 0:
            fd, self.twin = self.twin, -1
            os.close(fd)


@dataclass(slots=True, eq=False)
class Batch:
    """Contents that one worker stores, one after another; `done` is set however that ends."""

    items: list[Item] = field(default_factory=list)
    size: int = 0
    memory: int = 0
    """Bytes of contents, and of what lies between them, that are held in memory."""
    files: int = 0
    """Open files."""
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def discard(self, store: ObjectStore) -> None:
        """Give up what was never stored."""
        for item in self.items:
            if item.fd >= 0:
                fd, item.fd = item.fd, -1
                store.discard(fd)
            item.close_twin()


class WriterPool:
    """Threads that store batches, as long as the `with` block runs; leaving it by an error drops
    what has not begun."""

    def __init__(
        self, store: ObjectStore, workers: int = 2, *, hashing: DigestProcess | None = None
    ) -> None:
        """`hashing` computes digests, where the kernel doesn't."""
        self.store = store
        self._hashing = hashing
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"objects-{number}", daemon=True)
            for number in range(max(1, workers))
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
        self._stopped = error is not None
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        try:
            while True:
                left = self._queue.get_nowait()
                if left is not None:
                    left.discard(self.store)
        except Empty:
            pass

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                if self._stopped:
                    continue
                self._store_all(batch)
            except BaseException as error:  # handed to the thread that waits for the batch
                batch.error = error
            finally:
                batch.discard(self.store)
                batch.done.set()

    def _store_all(self, batch: Batch) -> None:
        store = self.store
        known = self._digest_data(batch)
        for number, item in enumerate(batch.items):
            compute = partial(self._digest, item, known.get(number))
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
                item.digest = store.store(
                    item.data, digest=known.get(number) or item.measured or None
                )
            item.data = b""
            item.leaf.content = External(item.size, item.digest)

    def _digest_data(self, batch: Batch) -> dict[int, bytes]:
        """The digests of the items whose contents are in memory, by their number, as far as it
        pays to compute all at once."""
        if self._hashing is None or self.store.measures:
            return {}
        numbers = [
            number for number, item in enumerate(batch.items) if item.data and not item.measured
        ]
        contents = [batch.items[number].data for number in numbers]
        return dict(
            zip(numbers, self._hashing.digests(contents, self.store.algorithm), strict=True)
        )

    def _digest(
        self, item: Item, known: bytes | None, fd: int, size: int, algorithm: Algorithm
    ) -> bytes:
        """The digest of what `fd` holds, by the cheapest way to read that."""
        if known is not None:
            return known
        if item.measured:
            return item.measured
        if item.data:
            return digest_bytes(item.data, algorithm)
        compute = digest_file if self._hashing is None else self._hashing.digest
        if item.twin >= 0:
            found = compute(item.twin, size, algorithm)
            if filelease.holds(item.twin):
                return found
        return compute(fd, size, algorithm)

    def _link(self, fd: int, item: Item, compute: Compute) -> bytes:
        linked = self.store.link(fd, item.size, compute=compute)
        if linked is not None:
            return linked
        return self.store.store(item.data) if item.data else self.store.import_file(fd)


def digest_file(fd: int, size: int, algorithm: Algorithm) -> bytes:
    """The `Compute` of whoever has no other: here and now."""
    return digest_fd(fd, algorithm)
