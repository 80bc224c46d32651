# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Digests by another process are those that this one computes, also when that process is gone."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm, digest_bytes
from bootc.composefs.hashing import LARGE, DigestProcess, Request
from bootc.composefs.hashing_process import ASKED_MAX, SHARED
from tests.varlinks import open_fds


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single one there is no process."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})


def children() -> list[int]:
    return [
        int(child)
        for folder in Path("/proc/self/task").iterdir()
        for child in (folder / "children").read_text().split()
    ]


def digests(hashing: DigestProcess, contents: Sequence[bytes], algorithm: Algorithm) -> list[bytes]:
    return hashing.take(hashing.ask(contents, algorithm))


@contextmanager
def started() -> Iterator[DigestProcess]:
    """A process that runs already."""
    with DigestProcess() as hashing:
        content = bytes(LARGE)
        found = digests(hashing, [content], Algorithm.SHA256)
        assert found == [digest_bytes(content, Algorithm.SHA256)]
        assert len(children()) == 1
        yield hashing


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
    [[], [0], [1, 0, 4096], [4097] * 24, [LARGE, 5], [SHARED], [SHARED, 1], [1] * 33],
    ids=lambda sizes: f"{len(sizes)} of {sum(sizes)}",
)
def test_many_contents_are_hashed_at_once(sizes: list[int]) -> None:
    contents = [os.urandom(size) for size in sizes]
    before = open_fds()
    with started() as hashing:
        for algorithm in (*Algorithm, *Algorithm):
            assert digests(hashing, contents, algorithm) == [
                digest_bytes(content, algorithm) for content in contents
            ]
    assert open_fds() == before


def test_much_may_be_asked_before_anything_is_taken(tmp_path: Path) -> None:
    """More messages than may be without an answer, and more bytes than both share."""
    file = os.urandom(LARGE)
    (tmp_path / "file").write_bytes(file)
    before = open_fds()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    rng = random.Random(1)
    contents = [
        [rng.randbytes(rng.randrange(90_000)) for _ in range(rng.randrange(1, 25))]
        for _ in range(3 * ASKED_MAX)
    ]
    assert sum(map(len, itertools.chain(*contents))) > 2 * SHARED
    with started() as hashing:
        asked: list[tuple[Request, list[bytes]]] = []
        for number, each in enumerate(contents):
            algorithm = list(Algorithm)[number % 2]
            expected = [digest_bytes(content, algorithm) for content in each]
            asked.append((hashing.ask(each, algorithm), expected))
            if number % 20 == 0:
                asked.append(
                    (hashing.ask_file(fd, LARGE, algorithm), [digest_bytes(file, algorithm)])
                )
        for request, expected in reversed(asked):
            assert hashing.take(request) == expected
            assert hashing.is_ready(request)
    os.close(fd)
    assert open_fds() == before


def test_threads_get_the_digests_of_what_they_asked_for() -> None:
    before = open_fds()
    failed: list[int] = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            contents = [rng.randbytes(rng.randrange(30_000)) for _ in range(rng.randrange(1, 9))]
            request = hashing.ask(contents, Algorithm.SHA256)
            rng.random() < 0.5 and hashing.is_ready(request)
            if hashing.take(request) != [digest_bytes(each, Algorithm.SHA256) for each in contents]:
                failed.append(seed)

    with started() as hashing:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert open_fds() == before


def test_an_answer_that_was_lost_is_not_taken_for_another() -> None:
    """Ctrl-C may come when it was read, and before it was noted."""
    contents = [[b"one"], [b"two", b"three"], [b"four"]]
    expected = [[digest_bytes(each, Algorithm.SHA512) for each in group] for group in contents]
    with started() as hashing:
        asked = [hashing.ask(group, Algorithm.SHA512) for group in contents]
        assert hashing._socket is not None
        assert digest_bytes(b"one", Algorithm.SHA512) in hashing._socket.recv(1000)
        assert [hashing.take(request) for request in reversed(asked)] == expected[::-1]
        asked = [hashing.ask(group, Algorithm.SHA512) for group in contents]
        assert hashing._asked.popleft() is asked[0], "as if it had not been noted"
        asked[0].is_waiting = False
        assert [hashing.take(request) for request in asked] == expected


def test_nobody_waits_for_a_process_that_was_given_up() -> None:
    with started() as hashing:
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        request = hashing.ask([b"one"], Algorithm.SHA256)
        timer = threading.Timer(0.1, hashing.give_up)
        timer.start()
        assert hashing.take(request) == [digest_bytes(b"one", Algorithm.SHA256)]
        timer.join()
        os.kill(child, signal.SIGCONT)
        assert digests(hashing, [b"two"], Algorithm.SHA256) == [
            digest_bytes(b"two", Algorithm.SHA256)
        ]
        hashing.give_up()


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    os.truncate(fd, LARGE)
    with started() as hashing:
        with pytest.raises(OSError, match="Bad file descriptor"):
            hashing.digest(fd, LARGE, Algorithm.SHA256)
        request = hashing.ask([b"next"], Algorithm.SHA256)
        assert request.is_waiting, "the process is still there"
        assert hashing.take(request) == [digest_bytes(b"next", Algorithm.SHA256)]
    os.close(fd)


def test_for_little_no_process_starts() -> None:
    content = os.urandom(LARGE // 4)
    with DigestProcess() as hashing:
        for _ in range(3):
            found = digests(hashing, [content], Algorithm.SHA256)
            assert found == [digest_bytes(content, Algorithm.SHA256)]
            assert not children()
        digests(hashing, [content], Algorithm.SHA256)
        assert len(children()) == 1
    assert not children()


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
            assert digests(hashing, [data], algorithm) == [digest_bytes(data, algorithm)]
    os.close(fd)
    assert open_fds() == before


def test_a_process_that_is_killed_is_done_without() -> None:
    contents = [b"one", b"two" * 5000]
    expected = [digest_bytes(content, Algorithm.SHA256) for content in contents]
    before = open_fds()
    with started() as hashing:
        assert digests(hashing, contents, Algorithm.SHA256) == expected
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        asked = [hashing.ask(contents, Algorithm.SHA256) for _ in range(3)]
        assert not any(map(hashing.is_ready, asked))
        os.kill(child, signal.SIGKILL)
        for request in asked:
            assert hashing.take(request) == expected
        for _ in range(3):
            assert digests(hashing, contents, Algorithm.SHA256) == expected
    assert open_fds() == before
