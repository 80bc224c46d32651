# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Work on many files in several processes while the files are still being found.

Python threads don't help: hashes of 4096 bytes are too short between two takes of its lock. So
`Workers` forks processes that wait for batches of files at a socket. The caller `submit`s files as
it finds them; a full batch is sent, or, when the workers have enough to do, kept and worked on by
the caller itself in `finish`. Batches are bounded in files and bytes, so that the end isn't one
process with the last large share.

A message to a worker is `u32 batch` and the batch's `SIZE PATH`, separated by zero bytes; a message
from it is `u32 batch, u8 0` and the results, or `u32 batch, u8 1` and the text of an error. Both
are sockets that keep messages apart.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct

from bootc.errors import BootcError, chain_text

Work = Callable[[bytes, int], bytes]
"""(path, size) of a file to its result, which has the same length for all of them."""

_FILES = 128
_BYTES = 4 << 20
_MESSAGE = 1 << 20
_BATCH = Struct("<I")
_REPLY = Struct("<IB")


def default_processes() -> int:
    """One for every processor that we may run on."""
    return len(os.sched_getaffinity(0))


class Workers:
    """Use as a context manager: its end is the processes' end.

    With `processes` 1, or in a program that has threads (which fork(2) would break), everything is
    done by the caller.
    """

    def __init__(self, work: Work, width: int, *, processes: int | None = None) -> None:
        """`width`: bytes of a result."""
        self._work = work
        self._width = width
        wanted = processes or default_processes()
        self._count = wanted - 1 if threading.active_count() == 1 else 0
        self._children: list[int] = []
        self._batch: list[bytes] = []
        self._bytes = self._sum = 0
        self._sizes: list[int] = []
        self._results: dict[int, bytes] = {}
        self._kept: deque[tuple[int, list[bytes]]] = deque()
        self._sent = 0

    def __enter__(self) -> Workers:
        if not self._count:
            return self
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._inbox, self._outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._outbox):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE)
        try:
            for _ in range(self._count):
                child = os.fork()
                if not child:
                    self._serve()
                self._children.append(child)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if not self._count:
            return
        for end in (self._ours, self._theirs, self._inbox, self._outbox):
            end.close()
        for child in self._children:
            if self._sent:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._children.clear()

    # -- In a worker

    def _serve(self) -> None:
        """Work until the caller closes its end. Does not return."""
        status = 1
        try:
            self._ours.close()
            self._inbox.close()
            while message := self._theirs.recv(_MESSAGE):
                (number,) = _BATCH.unpack_from(message)
                try:
                    results = self._do(message[_BATCH.size :].split(b"\0"))
                    reply = _REPLY.pack(number, 0) + results
                except (BootcError, OSError) as error:
                    text = chain_text(error).encode("utf-8", "surrogateescape")
                    reply = _REPLY.pack(number, 1) + text
                self._outbox.send(reply)
            status = 0
        finally:
            # Nothing of the caller's may happen twice: no handlers, no flushes.
            os._exit(status)

    def _do(self, batch: list[bytes]) -> bytes:
        work = self._work
        results: list[bytes] = []
        for file in batch:
            size, _, path = file.partition(b" ")
            results.append(work(path, int(size)))
        return b"".join(results)

    # -- In the caller

    def submit(self, path: bytes, size: int) -> None:
        """A file to work on. Its result is the next one of `finish`."""
        self._batch.append(b"%d %b" % (size, path))
        self._bytes += size
        if len(self._batch) == _FILES or self._bytes >= _BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._batch:
            return
        number = len(self._sizes)
        self._sizes.append(len(self._batch))
        self._kept.append((number, self._batch))
        self._batch, self._bytes = [], 0
        self._feed()
        self._collect()

    def _feed(self) -> None:
        """Send what the workers can take."""
        while self._kept and self._count:
            number, batch = self._kept[0]
            try:
                message = _BATCH.pack(number) + b"\0".join(batch)
                self._ours.send(message, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EMSGSIZE):
                    return
                raise
            self._kept.popleft()
            self._sent += 1

    def _collect(self, *, wait: bool = False) -> None:
        """Take the replies that are there; with `wait`, at least one."""
        while self._sent:
            flags = 0 if wait else socket.MSG_DONTWAIT
            try:
                reply = self._inbox.recv(_MESSAGE, flags)
            except BlockingIOError:
                return
            if not reply:
                raise BootcError("a worker process ended too early", hint="look at the kernel log")
            number, failed = _REPLY.unpack_from(reply)
            self._sent -= 1
            if failed:
                raise BootcError(reply[_REPLY.size :].decode("utf-8", "surrogateescape"))
            self._results[number] = reply[_REPLY.size :]
            wait = False

    def finish(self) -> Iterator[bytes]:
        """The results, in the order of the files."""
        self._flush()
        if self._count:
            # From here on only workers hold this end: when all are gone, that is noticed.
            self._outbox.close()
        while self._kept or self._sent:
            self._feed()
            taken = self._take()
            if taken is None:
                self._collect(wait=True)
                continue
            number, batch = taken
            self._results[number] = self._do(batch)
            self._collect()
        for number in range(len(self._sizes)):
            results = self._results.pop(number)
            for at in range(0, len(results), self._width):
                yield results[at : at + self._width]

    def _take(self) -> tuple[int, list[bytes]] | None:
        """A batch for the caller itself: the last one kept, or one that no worker took yet."""
        if self._kept:
            return self._kept.pop()
        try:
            message = self._theirs.recv(_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        self._sent -= 1
        (number,) = _BATCH.unpack_from(message)
        return number, message[_BATCH.size :].split(b"\0")
