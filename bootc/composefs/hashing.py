# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fs-verity digests of large files by a process of its own, where the kernel computes none.

Blocks of 4096 bytes are too short for Python's threads to hash at the same time, and a program with
threads can't fork. So this starts an interpreter, when the first large file comes, and sends it
descriptors over a socket that keeps messages apart: a byte for the algorithm, with the file's
descriptor; the digest comes back, or an empty message if that failed.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bootc import process
from bootc.composefs.digest import Algorithm, digest_fd

LARGE = 4 << 20
"""Bytes: a smaller file is hashed sooner than it is sent."""
_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from bootc.composefs.hashing import serve; serve()"
)


class DigestProcess:
    """Use as a context manager: its end is the process's end. Any thread may ask."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._useless = len(os.sched_getaffinity(0)) == 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def digest(self, fd: int, size: int, algorithm: Algorithm) -> bytes:
        """The digest of the whole file `fd`, of `size` bytes; `OSError` if it can't be read."""
        if size >= LARGE and not self._useless:
            with self._lock:
                found = self._ask(fd, algorithm)
            if found:
                return found
        return digest_fd(fd, algorithm)

    def _ask(self, fd: int, algorithm: Algorithm) -> bytes:
        try:
            if self._socket is None:
                self._socket = self._start()
            socket.send_fds(self._socket, [bytes([algorithm.kernel])], [fd])
            found = self._socket.recv(algorithm.size)
        except OSError:
            found = b""
        # Without an answer it ended: then all is done here.
        self._useless = len(found) != algorithm.size
        return b"" if self._useless else found

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Last in, first out: the process sees the end of its socket before it is waited for.
        with theirs:
            argv = [sys.executable, "-I", "-c", _CODE, _TOP]
            self._stack.enter_context(process.running(argv, stdin=theirs.fileno()))
        self._stack.enter_context(ours)
        return ours


def serve() -> None:
    """The process: answer on stdin, which is the socket, until nobody is there."""
    with socket.socket(fileno=os.dup(0)) as asked:
        while True:
            message, fds, _, _ = socket.recv_fds(asked, 1, 1)
            if not message or not fds:
                return
            (kernel,) = message
            algorithm = next(each for each in Algorithm if each.kernel == kernel)
            try:
                answer = digest_fd(fds[0], algorithm)
            except OSError:
                return
            finally:
                os.close(fds[0])
            asked.send(answer)
