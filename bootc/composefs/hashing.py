# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fs-verity digests by a process of its own, where the kernel computes none.

Python's threads don't hash blocks of 4096 bytes at the same time: for each they hand a lock over,
and the thread that parses waits with them. A program with threads can't fork, either. So this
starts an interpreter, when it is asked first; `hashing_process` is what that does.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from bootc import process
from bootc.closing import Closing
from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd
from bootc.composefs.hashing_process import (
    ANSWER_MAX,
    ASKED_MAX,
    CONTENTS_MAX,
    HEAD,
    NUMBER,
    SHARED,
    pack,
)
from bootc.errors import BootcError

LARGE = 4 << 20
"""Bytes: a smaller file, or less in all, is hashed sooner than it is sent."""
_HELLO = b"\0"
_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# It is waited for at its end, too: there is nothing that Python would have to tidy up.
_CODE = (
    "import os, sys; sys.path.insert(0, sys.argv[1]); "
    "from bootc.composefs.hashing_process import serve; serve(); os._exit(0)"
)


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """Digests that were asked for: of `contents`, or, if there are none, of the file `fd`, which
    stays open until they are taken."""

    algorithm: Algorithm
    contents: Sequence[bytes | memoryview] = ()
    fd: int = -1
    answer: bytes = b""
    """The digests, one after another; empty if nobody told."""
    is_waiting: bool = False
    """Whether the process may tell yet."""
    number: int = 0
    place: int = 0
    """Where the contents lie in the shared memory."""
    size: int = 0
    """Their bytes there."""

    def compute(self) -> list[bytes]:
        """The digests, here and now."""
        if self.fd >= 0:
            return [digest_fd(self.fd, self.algorithm)]
        return [digest_bytes(content, self.algorithm) for content in self.contents]


class DigestProcess(Closing):
    """Use as a context manager: its end is the process's end. Any thread may ask.

    The process starts when there is enough to hash to be worth it. Who has something else to do
    meanwhile calls `ask` or `ask_file`, and `take` later.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        # Who waits for an answer must not keep others from asking.
        self._asking = threading.Lock()
        self._receiving = threading.Lock()
        self._socket: socket.socket | None = None
        self._shared: mmap.mmap | None = None
        self._asked: deque[Request] = deque()
        self._number = 0
        self._free = 0
        self._asked_size = 0
        self._useless = len(os.sched_getaffinity(0)) == 1

    def close(self) -> None:
        self._stack.close()

    def give_up(self) -> None:
        """Let nobody wait for the process any more."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def digest(self, fd: int, size: int, algorithm: Algorithm) -> bytes:
        """The digest of the whole file `fd`, of `size` bytes; `OSError` if it can't be read."""
        return self.take(self.ask_file(fd, size, algorithm))[0]

    def ask_file(self, fd: int, size: int, algorithm: Algorithm) -> Request:
        """Begin what `digest` does."""
        request = Request(algorithm=algorithm, fd=fd)
        if size >= LARGE:
            self._send(request, size)
        return request

    def ask(self, contents: Sequence[bytes | memoryview], algorithm: Algorithm) -> Request:
        """Begin to compute the digests of `contents`, best so many that a message is worth it."""
        size = sum(map(len, contents))
        request = Request(algorithm=algorithm, contents=contents, size=size)
        if 0 < len(contents) <= CONTENTS_MAX and size <= SHARED:
            self._send(request, size)
        return request

    def is_ready(self, request: Request) -> bool:
        """Whether `take` would not wait for the process."""
        if request.is_waiting and self._receiving.acquire(blocking=False):
            try:
                while self._asked and self._receive(socket.MSG_DONTWAIT):
                    pass
            finally:
                self._receiving.release()
        return not request.is_waiting

    def take(self, request: Request) -> list[bytes]:
        """What was asked for."""
        self._wait(request)
        if len(request.answer) != request.algorithm.size * (len(request.contents) or 1):
            return request.compute()
        width = request.algorithm.size
        return [request.answer[at : at + width] for at in range(0, len(request.answer), width)]

    def _wait(self, request: Request) -> None:
        if request.is_waiting:
            with self._receiving:
                while request.is_waiting:
                    self._receive()

    def _send(self, request: Request, size: int) -> None:
        """Ask the process, if there is one; it answers in this order."""
        with self._asking:
            self._asked_size += size
            if self._useless or self._asked_size < LARGE:
                return
            self._find_room(request)
            try:
                if self._socket is None or self._shared is None:
                    self._socket, self._shared = self._start()
                numbers = [request.place] if request.contents else []
                place = request.place
                for content in request.contents:
                    self._shared[place : place + len(content)] = content
                    place += len(content)
                    numbers.append(len(content))
                self._number = request.number = self._number + 1
                head = HEAD.pack(request.algorithm.kernel, request.number)
                fds = [] if request.contents else [request.fd]
                socket.send_fds(self._socket, [head + pack(numbers)], fds)
            except (OSError, BootcError):
                self._useless = True
            else:
                request.is_waiting = True
                self._asked.append(request)

    def _find_room(self, request: Request) -> None:
        """Choose the contents' place in the shared memory, behind those that were asked for last,
        and wait until nothing is there, and not too much is asked."""
        begin = self._free if self._free + request.size <= SHARED else 0
        end = begin + request.size
        asked = list(self._asked)
        for number, other in enumerate(asked):
            is_there = begin < other.place + other.size and other.place < end
            if is_there or number <= len(asked) - ASKED_MAX:
                self._wait(other)
        request.place, self._free = begin, end

    def _receive(self, flags: int = 0) -> bool:
        """The next answer; False if it isn't there yet."""
        assert self._socket is not None
        try:
            answer = self._socket.recv(ANSWER_MAX, flags)
        except BlockingIOError:
            return False
        except OSError:
            answer = b""
        if len(answer) < NUMBER.size:
            # The process is gone: who asked computes it himself.
            self._useless = True
            while self._asked:
                self._asked.popleft().is_waiting = False
            return True
        (number,) = NUMBER.unpack_from(answer)
        # Ctrl-C may have come between an answer and its taking, or a message and its noting.
        while self._asked and self._asked[0].number < number:
            self._asked.popleft().is_waiting = False
        if self._asked and self._asked[0].number == number:
            request = self._asked.popleft()
            request.answer = answer[NUMBER.size :]
            request.is_waiting = False
        return True

    def _start(self) -> tuple[socket.socket, mmap.mmap]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Last in, first out: the process sees the end of its socket before it is waited for.
        try:
            with theirs:
                argv = [sys.executable, "-IS", "-c", _CODE, _TOP]
                self._stack.enter_context(process.running(argv, stdin=theirs.fileno()))
        except BaseException:
            ours.close()
            raise
        self._stack.enter_context(ours)
        memory = os.memfd_create("contents")
        try:
            os.truncate(memory, SHARED)
            shared = self._stack.enter_context(mmap.mmap(memory, SHARED))
            socket.send_fds(ours, [_HELLO], [memory])
        finally:
            os.close(memory)
        return ours, shared
