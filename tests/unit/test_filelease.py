# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Read leases: they are not given where somebody writes, and they tell when somebody wants to."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.linux import filelease
from tests.waiting import wait_until


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"as it was")
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    yield opened
    os.close(opened)


def test_a_lease_holds_as_long_as_nobody_wants_to_write(fd: int, tmp_path: Path) -> None:
    assert not filelease.holds(fd)
    assert filelease.take(fd)
    assert (tmp_path / "file").read_bytes() == b"as it was"
    other = os.open(tmp_path / "file", os.O_RDONLY)
    assert filelease.holds(fd)
    assert not filelease.holds(other), "it is the open file's"
    os.close(other)
    copied = os.dup(fd)
    assert filelease.holds(copied)
    os.close(copied)
    assert filelease.holds(fd)


@pytest.mark.parametrize("how", ["write", "truncate"])
def test_a_writer_waits_and_is_told_of(fd: int, tmp_path: Path, how: str) -> None:
    """The signal that the kernel sends ends nobody."""
    path = tmp_path / "file"
    assert filelease.take(fd)
    done = threading.Event()

    def change() -> None:
        if how == "write":
            path.write_bytes(b"changed")
        else:
            os.truncate(path, 2)
        done.set()

    writer = threading.Thread(target=change)
    writer.start()
    wait_until(lambda: not filelease.holds(fd))
    assert not done.is_set()
    assert os.pread(fd, 99, 0) == b"as it was"
    os.dup2(os.open(os.devnull, os.O_RDONLY), fd)  # the last descriptor of it: the lease ends
    writer.join()
    assert done.is_set()
    assert path.read_bytes() == (b"changed" if how == "write" else b"as")


def test_there_is_none_where_somebody_may_write(fd: int, tmp_path: Path) -> None:
    with open(tmp_path / "file", "r+b") as writer:
        assert not filelease.take(fd)
        mapped = mmap.mmap(writer.fileno(), 0)
    assert not filelease.take(fd), "it is mapped"
    mapped.close()
    assert filelease.take(fd)
    with open(tmp_path / "file", "rb") as reader:
        assert filelease.take(reader.fileno()), "others may have one, too"


@pytest.mark.parametrize("path", ["/", "/dev/null"])
def test_what_is_no_regular_file_has_none(path: str) -> None:
    other = os.open(path, os.O_RDONLY)
    assert not filelease.take(other)
    os.close(other)
    reading, writing = os.pipe()
    assert not filelease.take(reading)
    assert not filelease.holds(reading)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("mode", "own"), [(0o644, True), (0o600, True), (0o664, False), (0o646, False)]
)
def test_a_file_that_others_may_write_is_not_our_own(
    fd: int, tmp_path: Path, mode: int, own: bool
) -> None:
    (tmp_path / "file").chmod(mode)
    assert filelease.is_own(fd) is own
