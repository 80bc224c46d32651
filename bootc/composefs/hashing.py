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
from collections.abc import Sequence
from contextlib import ExitStack

from bootc import process
from bootc.closing import Closing
from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd
from bootc.composefs.hashing_process import CONTENTS_MAX, SHARED, pack
from bootc.errors import BootcError

LARGE = 4 << 20
"""Bytes: a smaller file is hashed sooner than it is sent."""
_HELLO = b"\0"
_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from bootc.composefs.hashing_process import serve; serve()"
)


class DigestProcess(Closing):
    """Use as a context manager: its end is the process's end. Any thread may ask."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._shared: mmap.mmap | None = None
        self._useless = len(os.sched_getaffinity(0)) == 1

    def close(self) -> None:
        self._stack.close()

    def digest(self, fd: int, size: int, algorithm: Algorithm) -> bytes:
        """The digest of the whole file `fd`, of `size` bytes; `OSError` if it can't be read."""
        if size >= LARGE and not self._useless:
            with self._lock:
                found = self._ask([], [fd], algorithm)
            if found:
                return found
        return digest_fd(fd, algorithm)

    def digests(self, contents: Sequence[bytes | memoryview], algorithm: Algorithm) -> list[bytes]:
        """The digests of `contents`, which are best so many that a message is worth it."""
        if (
            not self._useless
            and 0 < len(contents) <= CONTENTS_MAX
            and sum(map(len, contents)) <= SHARED
        ):
            with self._lock:
                found = self._ask(contents, [], algorithm)
            if found:
                width = algorithm.size
                return [found[at : at + width] for at in range(0, len(found), width)]
        return [digest_bytes(content, algorithm) for content in contents]

    def _ask(
        self, contents: Sequence[bytes | memoryview], fds: list[int], algorithm: Algorithm
    ) -> bytes:
        """The digests, one after another; nothing if there is no process that could tell."""
        expected = algorithm.size * (len(contents) or 1)
        try:
            if self._socket is None or self._shared is None:
                self._socket, self._shared = self._start()
            at = 0
            for content in contents:
                self._shared[at : at + len(content)] = content
                at += len(content)
            message = bytes([algorithm.kernel]) + pack([len(content) for content in contents])
            socket.send_fds(self._socket, [message], fds)
            found = self._socket.recv(expected)
        except (OSError, BootcError):
            found = b""
        # Without an answer it ended: then all is done here.
        self._useless = len(found) != expected
        return b"" if self._useless else found

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
