# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fs-verity digests against pinned vectors, and the three ways to get one against each other."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bootc.composefs.digest import Algorithm, FileHasher, Hasher, digest_bytes, digest_fd

HELLO512 = (
    "18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba5"
    "14e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409"
)


def ramp(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


VECTORS = [
    (b"hello world", "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64"),
    (b"", "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
    (bytes(4097), "093756e4ea9683329106d4a16982682ed182c14bf076463a9e7f97305cbac743"),
    (ramp(1), "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551"),
    (ramp(4096), "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157"),
    (ramp(4097), "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa"),
    (ramp(524288), "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4"),
    (ramp(524289), "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4"),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS, ids=lambda v: len(v))
def test_digest_vectors(data: bytes, expected: str, tmp_path: Path) -> None:
    assert digest_bytes(data, Algorithm.SHA256).hex() == expected
    path = tmp_path / "data"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.lseek(fd, 3, os.SEEK_SET)
        assert digest_fd(fd, Algorithm.SHA256).hex() == expected
        assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    finally:
        os.close(fd)


def test_digest_sha512() -> None:
    assert digest_bytes(b"hello world", Algorithm.SHA512).hex() == HELLO512


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("blocks", [1, 63, 64, 65, 128, 129, 64 * 64, 64 * 64 + 1])
def test_digest_streams_whole_levels(algorithm: Algorithm, blocks: int) -> None:
    data = ramp(blocks * 4096)
    hasher = algorithm.hasher()
    for at in range(0, len(data), 1 << 16):
        hasher.update(memoryview(data)[at : at + (1 << 16)])
    assert hasher.digest() == digest_bytes(data, algorithm)


@settings(max_examples=60)
@given(cuts=some.lists(some.integers(0, 9000), max_size=12), algorithm=some.sampled_from(Algorithm))
def test_digest_of_pieces_is_that_of_the_whole(cuts: list[int], algorithm: Algorithm) -> None:
    hasher = Hasher(algorithm)
    data = ramp(sum(cuts))
    at = 0
    for cut in cuts:
        hasher.update(data[at : at + cut])
        at += cut
        assert hasher.digest() == digest_bytes(data[:at], algorithm)
    assert hasher.size == len(data)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_digest_of_files_through_one_buffer(algorithm: Algorithm, tmp_path: Path) -> None:
    room = 256 * 1024
    hasher = FileHasher(algorithm)
    sizes = (0, 1, 4096, 4097, room - 1, room, room + 1, room + 4096, 5 * room, 5 * room - 4095)
    # What a larger file left in the buffer must not count.
    for size in (*sizes, *reversed(sizes)):
        path = tmp_path / "data"
        path.write_bytes(ramp(size))
        with open(path, "rb") as file:
            digest, found, content = hasher.digest(file.fileno())
            assert (
                digest == digest_bytes(ramp(size), algorithm) == digest_fd(file.fileno(), algorithm)
            )
            assert found == size
            assert (None if content is None else bytes(content)) == (
                None if size >= room else ramp(size)
            )
            assert file.tell() == 0


def test_digest_names() -> None:
    assert Algorithm("sha512").identifier == "fsverity-sha512-12"
    assert [(a.size, a.kernel) for a in Algorithm] == [(32, 1), (64, 2)]
