# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The process that computes digests for `hashing`. It imports little, because it is waited for.

It is asked over a socket that keeps messages apart. A message is a byte for the algorithm and

    nothing more, with a descriptor    hash that file
    u32 place, u32 lengths             hash so many contents, which lie one after another from that
    (little-endian)                    place on in the memory that both share

and the answer is the digests, one after another, or nothing if that failed. The first message
brings the descriptor of the shared memory.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
from array import array

from bootc.composefs.digest import Algorithm, digest_bytes, digest_fd

SHARED = 16 << 20
"""Bytes of the shared memory."""
CONTENTS_MAX = 32
"""Contents in a message."""
ASKED_MAX = 32
"""Messages without an answer. So many, and their answers, fit into the sockets' buffers, so that
nobody waits for room there while the other one does."""


def pack(numbers: list[int]) -> bytes:
    packed = array("I", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(data: bytes) -> list[int]:
    packed = array("I", data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def serve() -> None:
    """The process: answer on stdin, which is the socket, until nobody is there."""
    with socket.socket(fileno=os.dup(0)) as asked:
        _, fds, _, _ = socket.recv_fds(asked, 1, 1)
        if not fds:
            return
        with mmap.mmap(fds[0], SHARED) as shared, memoryview(shared) as contents:
            os.close(fds[0])
            while answer := _answer(asked, contents):
                asked.send(answer)


def _answer(asked: socket.socket, contents: memoryview) -> bytes:
    """The digests that the next message asks for; nothing at the end."""
    message, fds, _, _ = socket.recv_fds(asked, 1 + 4 * (1 + CONTENTS_MAX), 1)
    if not message:
        return b""
    algorithm = next(each for each in Algorithm if each.kernel == message[0])
    if fds:
        try:
            return digest_fd(fds[0], algorithm)
        except OSError:
            return b""
        finally:
            os.close(fds[0])
    digests: list[bytes] = []
    at, *lengths = _unpack(message[1:])
    for length in lengths:
        with contents[at : at + length] as content:
            digests.append(digest_bytes(content, algorithm))
        at += length
    return b"".join(digests)
