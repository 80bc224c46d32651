# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Files with fs-verity that come to a repository without: the kernel knows their digests.

The kernel is a fake one here, which has descriptors for chosen files.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm, digest_bytes, digest_of_descriptor
from bootc.composefs.dirfdstream import StreamWriter
from bootc.composefs.dirfdstream_import import PipeReader, receive_layer
from bootc.composefs.layers import SPOOL
from bootc.composefs.repository import Repository
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.linux.verity_descriptor import read_descriptor
from tests.ocibuild import END, header, padded, sha256

_ENABLE = 0x40806685
_READ_METADATA = 0xC0286687
CONTENTS = {b"small": b"s" * 5000, b"large": b"l" * (SPOOL + 5)}


def descriptor(
    size: int, root: bytes, *, hash_number: int = 1, log_blocks: int = 12, signed: int = 0
) -> bytes:
    return struct.pack("<BBBBIQ64s176x", 1, hash_number, log_blocks, 0, signed, size, root)


def fake_kernel(known: dict[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel have a descriptor for files by their inodes, and seal none."""
    real: Callable[..., object] = fcntl.ioctl

    def ioctl(fd: int, request: int, *arguments: object) -> object:
        if request == _ENABLE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if request != _READ_METADATA:
            return real(fd, request, *arguments)
        found = known.get(os.fstat(fd).st_ino)
        if found is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        asked = arguments[0]
        assert isinstance(asked, bytearray)
        what, offset, length, address, zero = struct.unpack("=QQQQQ", asked)
        assert (what, offset, zero) == (2, 0, 0)
        ctypes.memmove(address, found, min(length, len(found)))
        return min(length, len(found))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


def receive(repo: Repository, folder: Path) -> list[bytes]:
    """Send the files of the folder as a layer; the objects that they became."""
    reading, writing = os.pipe()
    # The little that is sent fits into the pipe.
    writer = StreamWriter(writing)
    tar = b""
    for name, content in CONTENTS.items():
        head, rest = header(name, len(content)), padded(content)[len(content) :]
        writer.metadata(head)
        writer.file(len(content), 0, name)
        writer.metadata(rest)
        tar += head + content + rest
    writer.metadata(END)
    writer.flush()
    tar += END
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(writing)
        receive_layer(repo, PipeReader(reading), [directory], sha256(tar), zerocopy=False)
    finally:
        os.close(directory)
        os.close(reading)
    return open_stream(repo, layer_content_id(sha256(tar))).object_refs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    for name, content in CONTENTS.items():
        (path / name.decode()).write_bytes(content)
    return path


def received(path: Path, folder: Path, found: dict[bytes, bytes]) -> list[bytes]:
    """The objects, in a new repository; `found` has the descriptors by name."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        Repository.init(path, algorithm=Algorithm.SHA256, secure=False) as repo,
    ):
        inodes = {(folder / name.decode()).stat().st_ino: each for name, each in found.items()}
        fake_kernel(inodes, monkeypatch)
        objects = receive(repo, folder)
        for digest, content in zip(objects, CONTENTS.values(), strict=True):
            assert repo.read_object(digest) == content
    return objects


def test_the_kernels_digest_is_taken(tmp_path: Path, folder: Path) -> None:
    # It names another root than these contents have, so it can't have been computed here.
    found = {
        name: descriptor(len(content), b"root", signed=77) for name, content in CONTENTS.items()
    }
    objects = received(tmp_path / "repo", folder, found)
    assert objects == [
        digest_of_descriptor(descriptor(len(content), b"root"), Algorithm.SHA256)
        for content in CONTENTS.values()
    ]


@pytest.mark.parametrize(
    "found",
    [
        {},
        {name: descriptor(5, b"root", log_blocks=16) for name in CONTENTS},
        {name: descriptor(5, b"root", hash_number=2) for name in CONTENTS},
        {name: descriptor(5, b"root")[:100] for name in CONTENTS},
        {name: bytes(256) for name in CONTENTS},
    ],
    ids=["not sealed", "other blocks", "other hash", "too short", "nothing written"],
)
def test_what_is_no_digest_of_ours_is_computed(
    tmp_path: Path, folder: Path, found: dict[bytes, bytes]
) -> None:
    objects = received(tmp_path / "repo", folder, found)
    assert objects == [digest_bytes(content, Algorithm.SHA256) for content in CONTENTS.values()]


def test_a_descriptors_digest_is_the_files(folder: Path) -> None:
    content = b"x" * 4096
    root = Algorithm.SHA512.function(content).digest()
    made = descriptor(len(content), root, hash_number=2)
    assert digest_of_descriptor(made, Algorithm.SHA512) == digest_bytes(content, Algorithm.SHA512)
    with open(folder / "small", "rb") as file:
        assert read_descriptor(file.fileno()) is None
