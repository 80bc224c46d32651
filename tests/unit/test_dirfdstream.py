# SPDX-License-Identifier: Apache-2.0 OR MIT
"""splitdirfdstream: the format, the order of descriptors, and names that are refused."""

from __future__ import annotations

import io
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootc.composefs.dirfdstream import (
    DATA_MAX,
    Chunk,
    Data,
    FileBacked,
    StreamReader,
    StreamWriter,
    name_problem,
    read_chunks,
)
from bootc.composefs.dirfdstream_fds import BATCH_MAX, Incoming, Outgoing, plan_layout
from bootc.errors import BootcError, FormatError
from tests.dirfdstreams import written
from tests.varlinks import open_fds

NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: name_problem(name) is None)
CHUNKS = st.one_of(
    st.tuples(st.just("metadata"), st.binary(max_size=3000)),
    st.tuples(st.just("inline"), st.binary(max_size=3000)),
    st.tuples(st.just("file"), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), NAMES),
)


class Trickle(io.BytesIO):
    """Gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._most)


@settings(max_examples=150)
@given(st.lists(CHUNKS, max_size=20), st.integers(1, 5000))
def test_what_is_written_is_read(chunks: list[tuple[object, ...]], most: int) -> None:
    def write(writer: StreamWriter) -> None:
        for kind, *rest in chunks:
            getattr(writer, str(kind))(*rest)

    expected: list[tuple[Chunk, bytes]] = []
    for kind, *rest in chunks:
        if kind == "file":
            size, index, name = rest
            assert isinstance(size, int)
            assert isinstance(index, int)
            assert isinstance(name, bytes)
            expected.append((FileBacked(size, index, name), b""))
            continue
        (data,) = rest
        assert isinstance(data, bytes)
        if data or kind == "inline":
            expected.append((Data(len(data), kind == "inline"), data))
    assert list(read_chunks(Trickle(written(write), most))) == expected


def test_the_bytes_are_those_of_the_format() -> None:
    def write(writer: StreamWriter) -> None:
        writer.metadata(b"head")
        writer.metadata(b"")
        writer.inline(b"")
        writer.file(5, 3, b"ab/cd")

    assert written(write) == (
        b"\0\x04\0\0\0head\1\0\0\0\0\2\x05\0\0\0\0\0\0\0\x03\0\0\0\x05\0\0\0ab/cd"
    )


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\3", "unknown chunk type 3"),
        (b"\0", "in the middle of a chunk"),
        (b"\0\1\0\0", "in the middle of a chunk"),
        (b"\0\2\0\0\0x", "ends 1 bytes too early"),
        (struct.pack("<BI", 1, DATA_MAX + 1), "a chunk of 268435457 bytes"),
        (struct.pack("<BQII", 2, 1, 0, 0), "a name of 0 bytes"),
        (struct.pack("<BQII", 2, 1, 0, 4097), "a name of 4097 bytes"),
        (struct.pack("<BQII", 2, 1, 0, 2) + b"x", "in the middle of a chunk"),
        (struct.pack("<BQII", 2, 1, 0, 2) + b"/x", "an absolute name"),
        (struct.pack("<BQII", 2, 1, 0, 2) + b"..", "leads out of its directory"),
        (struct.pack("<BQII", 2, 1, 0, 6) + b"a/../b", "leads out of its directory"),
        (struct.pack("<BQII", 2, 1, 0, 3) + b"a\0b", "a zero byte"),
    ],
)
def test_a_bad_stream_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        list(read_chunks(io.BytesIO(data)))
    with pytest.raises(FormatError, match=problem):
        list(read_chunks(Trickle(data, 1)))


def test_a_chunk_that_is_not_read_is_skipped() -> None:
    reader = StreamReader(Trickle(b"\0\5\0\0\0hello\1\3\0\0\0abc", 2))
    assert reader.next() == Data(5, False)
    assert reader.data(2) in (b"h", b"he")
    assert reader.next() == Data(3, True)
    assert reader.next() is None


@pytest.mark.parametrize("name", [b"a/./b", b"a//b", b"...", b"..a/b..", b"\xff\xfe"])
def test_harmless_names_are_names(name: bytes) -> None:
    assert name_problem(name) is None


# -- The order of descriptors


@settings(max_examples=300)
@given(st.text(min_size=1), st.integers(1, 600))
def test_layouts_follow_the_rules(identity: str, directories: int) -> None:
    layout = plan_layout(identity, directories)
    assert layout == plan_layout(identity, directories)
    assert len(layout.slots) == directories
    assert list(layout.slots) == sorted(set(layout.slots))
    assert layout.slots[-1] < layout.directories
    dummies = layout.directories - directories
    assert 1 <= dummies <= directories + 1
    assert 0 <= layout.extras <= 2
    batches = layout.batches()
    assert sum(batches) == layout.total
    assert max(batches) <= BATCH_MAX
    assert len(batches) >= min(3, layout.total)
    assert max(batches) - min(batches) <= 1
    assert list(batches) == sorted(batches, reverse=True)


def test_the_real_directory_is_not_always_the_first() -> None:
    slots = {plan_layout(f"oci-layer-{number}", 1).slots[0] for number in range(50)}
    assert slots == {0, 1, 2}


@settings(max_examples=30)
@given(identity=st.text(min_size=1, max_size=8), count=st.integers(1, 5))
def test_descriptors_arrive_where_the_layout_says(
    identity: str, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("directories")
    paths = [folder / str(number) for number in range(count)]
    before = open_fds()
    directories = []
    for path in paths:
        path.mkdir()
        directories.append(os.open(path, os.O_RDONLY))
    layout = plan_layout(identity, count)
    with Outgoing(layout, directories) as outgoing:
        fds = [fd for size in layout.batches() for fd in outgoing.take(size)]
        with Incoming(fds, layout.directories) as incoming:
            for number, slot in enumerate(layout.slots):
                found = os.stat(incoming.directories[slot])
                assert found.st_ino == paths[number].stat().st_ino
            os.write(outgoing.stream, b"x")
            assert os.read(incoming.stream, 9) == b"x"
            assert len(incoming.lifetime) == 1 + layout.extras
            os.set_blocking(outgoing.released, False)
            with pytest.raises(BlockingIOError):
                os.read(outgoing.released, 1)
        assert os.read(outgoing.released, 1) == b"", "nobody holds a lifetime descriptor"
    for fd in directories:
        os.close(fd)
    assert open_fds() == before


@pytest.mark.parametrize(("fds", "dir_count"), [(0, 1), (2, 1), (3, 2), (4, 0), (4, -1)])
def test_too_few_descriptors_are_refused_and_closed(fds: int, dir_count: int) -> None:
    before = open_fds()
    given = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
    with pytest.raises(BootcError, match="descriptors"):
        Incoming(given, dir_count)
    assert open_fds() == before
