# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Digests by another process are those that this one computes, also when that process is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.hashing import LARGE, DigestProcess
from bootc.composefs.hashing_process import SHARED
from tests.varlinks import open_fds


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, LARGE + 4097])
def test_digests_are_the_same(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    before = open_fds()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with DigestProcess() as hashing:
        for algorithm in (*Algorithm, *Algorithm):
            assert hashing.digest(fd, size, algorithm) == digest_bytes(data, algorithm)
    os.close(fd)
    assert open_fds() == before


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [1, 0, 4096], [4097] * 24, [LARGE, 5], [SHARED], [SHARED, 1], [1] * 1025],
    ids=lambda sizes: f"{len(sizes)} of {sum(sizes)}",
)
def test_many_contents_are_hashed_at_once(sizes: list[int]) -> None:
    contents = [os.urandom(size) for size in sizes]
    before = open_fds()
    with DigestProcess() as hashing:
        for algorithm in (*Algorithm, *Algorithm):
            assert hashing.digests(contents, algorithm) == [
                digest_bytes(content, algorithm) for content in contents
            ]
    assert open_fds() == before


@pytest.mark.parametrize("name", ["false", "missing"])
def test_a_process_that_cannot_start_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data = os.urandom(LARGE)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "false").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "false").chmod(0o755)
    before = open_fds()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    monkeypatch.setattr("sys.executable", str(tmp_path / name))
    with DigestProcess() as hashing:
        for algorithm in (*Algorithm, *Algorithm):
            assert hashing.digest(fd, LARGE, algorithm) == digest_bytes(data, algorithm)
            assert hashing.digests([data], algorithm) == [digest_bytes(data, algorithm)]
    os.close(fd)
    assert open_fds() == before


def test_a_process_that_is_killed_is_done_without(tmp_path: Path) -> None:
    contents = [b"one", b"two" * 5000]
    expected = [digest_bytes(content, Algorithm.SHA256) for content in contents]
    before = open_fds()
    with DigestProcess() as hashing:
        assert hashing.digests(contents, Algorithm.SHA256) == expected
        for folder in Path("/proc/self/task").iterdir():
            for child in (folder / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        for _ in range(3):
            assert hashing.digests(contents, Algorithm.SHA256) == expected
    assert open_fds() == before
