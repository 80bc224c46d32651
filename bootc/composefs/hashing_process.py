# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The process that computes digests for `hashing`. It imports little, because it is waited for.

It is asked over a socket that keeps messages apart. A message is a byte for the algorithm, a u32
for the message's number, and

    nothing more, with a descriptor    hash that file
    u32 place, u32 lengths             hash so many contents, which lie one after another from that
                                       place on in the memory that both share

(little-endian), and the answer is the number and the digests, one after another, or the number
alone if that failed. The first message brings the descriptor of the shared memory.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
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
HEAD = struct.Struct("<BI")
NUMBER = struct.Struct("<I")
ANSWER_MAX = NUMBER.size + 64 * CONTENTS_MAX


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
    """What the next message asks for; nothing at the end."""
    message, fds, _, _ = socket.recv_fds(asked, HEAD.size + 4 * (1 + CONTENTS_MAX), 1)
    if not message:
        return b""
    kernel, number = HEAD.unpack_from(message)
    algorithm = next(each for each in Algorithm if each.kernel == kernel)
    if fds:
        try:
            return NUMBER.pack(number) + digest_fd(fds[0], algorithm)
        except OSError:
            return NUMBER.pack(number)
        finally:
            os.close(fds[0])
    digests = [NUMBER.pack(number)]
    at, *lengths = _unpack(message[HEAD.size :])
    for length in lengths:
        with contents[at : at + length] as content:
            digests.append(digest_bytes(content, algorithm))
        at += length
    return b"".join(digests)
