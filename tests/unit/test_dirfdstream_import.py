# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Layers that come as a splitdirfdstream, and what is believed of them: nothing."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream import (
    StreamWriter,
)
from bootc.composefs.dirfdstream_export import export_layer, join_exports, write_layer
from bootc.composefs.dirfdstream_fds import Incoming
from bootc.composefs.dirfdstream_import import (
    CancelledError,
    DiffIdMismatchError,
    PipeReader,
    Received,
    receive_layer,
)
from bootc.composefs.pull import import_tar
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import OCI_BLOB
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.composefs.stored_layers import read_bytes
from bootc.errors import BootcError, FormatError
from tests.dirfdstreams import written
from tests.ocibuild import END, header, member, padded, sha256, system_tar
from tests.varlinks import open_fds


@pytest.fixture(params=[Algorithm.SHA256, Algorithm.SHA512])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", algorithm=request.param, secure=False) as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "src", algorithm=Algorithm.SHA256, secure=False) as made:
        yield made


@contextmanager
def piped(data: bytes, *, cut: int | None = None) -> Iterator[int]:
    """The read end of a pipe into which a thread writes `data`, or the first bytes of it."""
    reading, writing = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(writing, "wb") as file:
                file.write(data if cut is None else data[:cut])
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield reading
    finally:
        os.close(reading)
        thread.join()


def receive(
    repo: Repository,
    data: bytes,
    diff_id: str,
    folder: Path | None = None,
    *,
    zerocopy: bool = False,
) -> Received:
    """What comes of a stream; `folder` is directory 1, directory 0 is a dummy."""
    directory = os.open(folder or repo.path, os.O_RDONLY | os.O_DIRECTORY)
    dummy = os.open("/dev/null", os.O_RDONLY)
    try:
        with piped(data) as pipe:
            return receive_layer(
                repo, PipeReader(pipe), [dummy, directory], diff_id, zerocopy=zerocopy
            )
    finally:
        os.close(directory)
        os.close(dummy)


def tar_of(repo: Repository, diff_id: str) -> bytes:
    return b"".join(read_bytes(repo, open_stream(repo, layer_content_id(diff_id))))


def streams(repo: Repository) -> list[str]:
    try:
        return os.listdir(f"{repo.path}/streams")
    except FileNotFoundError:
        return []


def large_tar() -> bytes:
    sizes = (0, 1, 64, 65, 511, 512, 4096, 70_000, (4 << 20) + 17)
    return b"".join(member(b"f%d" % size, os.urandom(size)) for size in sizes) + END + bytes(700)


@pytest.mark.parametrize("zerocopy", [False, True])
def test_a_layer_goes_from_one_repository_to_another(
    repo: Repository, source: Repository, zerocopy: bool
) -> None:
    tar = large_tar()
    diff_id = sha256(tar)
    import_tar(source, io.BytesIO(tar), diff_id)
    before = open_fds()
    with export_layer(source, diff_id, lambda: None) as outgoing:
        total, count = outgoing.layout.total, outgoing.layout.directories
        with Incoming(outgoing.take(total), count) as incoming:
            got = receive_layer(
                repo,
                PipeReader(incoming.stream),
                incoming.directories,
                diff_id,
                zerocopy=zerocopy,
            )
    join_exports()
    assert tar_of(repo, diff_id) == tar
    assert not got.already_present
    assert got.counts.new == 6
    if zerocopy:
        assert got.counts.copied == got.counts.written == 0
    if repo.algorithm is source.algorithm:
        assert got.digest == source.find_stream(layer_content_id(diff_id)), "byte for byte"
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds() - before]
    assert all(f"{repo.path}/objects" in path for path in opened), "only the store's own"


def test_a_layer_that_is_there_is_drained_and_not_read(repo: Repository) -> None:
    tar = system_tar()
    import_tar(repo, io.BytesIO(tar), sha256(tar))
    data = written(lambda writer: writer.metadata(tar)) + b"\0\1\0\0\0?" * 200_000
    found = receive(repo, data, sha256(tar))
    assert found.already_present
    assert found.digest == repo.find_stream(layer_content_id(sha256(tar)))
    assert found.counts.new == 0


def cut_tar(kind: str) -> Callable[[StreamWriter], None]:
    """One tar, in chunks that a sender could make of it."""
    first, second = b"a" * 10_000, b"b" * 100

    def write(writer: StreamWriter) -> None:
        writer.metadata(header(b"one", len(first)))
        match kind:
            case "files":
                writer.file(len(first), 1, b"sub/one")
            case "inline":
                writer.inline(first)
            case "inline in pieces":
                writer.inline(b"")
                writer.inline(first[:100])
                writer.inline(first[100:])
            case "metadata":
                writer.metadata(first)
            case _:
                writer.file(4000, 1, b"part")
                writer.inline(first[4000:])
        writer.metadata(padded(first)[len(first) :] + header(b"two", 100))
        writer.inline(second)
        writer.metadata(padded(second)[100:] + header(b"small", 3))
        if kind == "files":
            writer.file(3, 1, b"small")
            writer.metadata(bytes(509))
        else:
            writer.metadata(padded(b"abc"))
        writer.metadata(END)

    return write


@pytest.mark.parametrize(
    "kind", ["files", "inline", "inline in pieces", "metadata", "file and inline"]
)
def test_however_a_tar_is_cut_it_is_stored_as_pulled(
    repo: Repository, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/one").write_bytes(b"a" * 10_000)
    (folder / "part").write_bytes(b"a" * 4000)
    (folder / "small").write_bytes(b"abc")
    tar = (
        member(b"one", b"a" * 10_000) + member(b"two", b"b" * 100) + member(b"small", b"abc") + END
    )
    got = receive(repo, written(cut_tar(kind)), sha256(tar), folder)
    assert tar_of(repo, sha256(tar)) == tar
    with Repository.init(tmp_path / "other", algorithm=repo.algorithm, secure=False) as other:
        assert import_tar(other, io.BytesIO(tar), sha256(tar)) == got.digest


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 64, b"y" * 100_000])
@pytest.mark.parametrize("how", ["file", "inline", "mixed"])
def test_a_blob_becomes_one_object(repo: Repository, tmp_path: Path, data: bytes, how: str) -> None:
    (tmp_path / "blob").write_bytes(data)
    half = len(data) // 2
    (tmp_path / "half").write_bytes(data[:half])

    def write(writer: StreamWriter) -> None:
        if how == "file":
            writer.file(len(data), 1, b"blob")
        elif how == "inline":
            writer.inline(data)
        else:
            writer.file(half, 1, b"half")
            writer.inline(data[half:])

    receive(repo, written(write), sha256(data), tmp_path)
    stream = open_stream(repo, layer_content_id(sha256(data)))
    assert stream.content_type == OCI_BLOB
    assert repo.read_object(stream.only_object()) == data


def test_a_link_that_stays_below_is_followed(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_bytes(b"z" * 500)
    (tmp_path / "link").symlink_to("real")
    tar = member(b"f", b"z" * 500) + END

    def write(writer: StreamWriter) -> None:
        writer.metadata(header(b"f", 500))
        writer.file(500, 1, b"./link//file")
        writer.metadata(bytes(12) + END)

    receive(repo, written(write), sha256(tar), tmp_path)
    assert tar_of(repo, sha256(tar)) == tar


def bad_file(size: int, index: int, name: bytes) -> bytes:
    """A stream with one file of 500 bytes, as it is told."""
    start = written(lambda writer: writer.metadata(header(b"f", 500)))
    chunk = struct.pack("<BQII", 2, size, index, len(name)) + name
    return start + chunk + written(lambda writer: writer.metadata(bytes(12) + END))


@pytest.mark.parametrize(
    ("size", "index", "name", "problem"),
    [
        (500, 2, b"file", "there is no directory 2"),
        (500, 2**32 - 1, b"file", "there is no directory"),
        (500, 0, b"file", "is no directory"),
        (500, 1, b"missing", "No such file"),
        (500, 1, b"folder", "is no regular file"),
        (500, 1, b"fifo", "is no regular file"),
        (500, 1, b"socket", "cannot be opened"),
        (500, 1, b"../file", "leads out of its directory"),
        (500, 1, b"out", "leads out of its directory"),
        (500, 1, b"absolute", "leads out of its directory"),
        (500, 1, b"loop", "too many symbolic links"),
        (500, 1, b"short", "is 499 bytes long, but was said to be 500"),
        (500, 1, b"long", "is 501 bytes long"),
        (501, 1, b"file", "is 500 bytes long, but was said to be 501"),
        (2**64 - 1, 1, b"file", "is more than"),
    ],
)
@pytest.mark.parametrize("zerocopy", [False, True])
def test_bad_files_are_refused_and_nothing_is_published(
    repo: Repository,
    tmp_path: Path,
    size: int,
    index: int,
    name: bytes,
    problem: str,
    zerocopy: bool,
) -> None:
    folder = tmp_path / "below"
    (folder / "folder").mkdir(parents=True)
    for file, length in (("file", 500), ("short", 499), ("long", 501)):
        (folder / file).write_bytes(b"z" * length)
    (tmp_path / "file").write_bytes(b"z" * 500)
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "socket", 0o140644)
    (folder / "out").symlink_to("../file")
    (folder / "absolute").symlink_to(tmp_path / "file")
    (folder / "loop").symlink_to("loop")
    tar = member(b"f", b"z" * 500) + END
    repo.writable_objects()
    before = open_fds()
    with pytest.raises(FormatError, match=problem):
        receive(repo, bad_file(size, index, name), sha256(tar), folder, zerocopy=zerocopy)
    assert open_fds() == before
    assert streams(repo) == []


def test_hard_links_are_for_files_that_nobody_else_writes(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"z" * 500)
    (tmp_path / "file").chmod(0o666)
    tar = member(b"f", b"z" * 500) + END
    with pytest.raises(FormatError, match="may not be hard-linked"):
        receive(repo, bad_file(500, 1, b"file"), sha256(tar), tmp_path, zerocopy=True)
    assert streams(repo) == []


LARGE = os.urandom(5 << 20)


def large_file(folder: Path) -> tuple[bytes, str]:
    """A file that is copied rather than held in memory: the stream and its diff id."""
    (folder / "file").write_bytes(LARGE)
    tar = member(b"f", LARGE) + END

    def write(writer: StreamWriter) -> None:
        writer.metadata(header(b"f", len(LARGE)))
        writer.file(len(LARGE), 1, b"file")
        writer.metadata(END)

    return written(write), sha256(tar)


def test_a_large_file_is_copied_where_the_kernel_does_not(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr("os.copy_file_range", refuse)
    data, diff_id = large_file(tmp_path)
    got = receive(repo, data, diff_id, tmp_path)
    assert got.counts.new == 1
    assert tar_of(repo, diff_id) == member(b"f", LARGE) + END


@pytest.mark.parametrize(
    ("size", "match"),
    [
        (len(LARGE) - 1, "changed its length"),
        (1, "changed its length"),
        (len(LARGE) + 1, "changed its length"),
        (len(LARGE) + (9 << 20), "changed its length"),
        (len(LARGE), "has the digest"),
    ],
)
def test_a_large_file_that_changes_while_it_is_copied_publishes_nothing(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, match: str
) -> None:
    data, diff_id = large_file(tmp_path)
    copy = os.copy_file_range

    def copy_and_change(source: int, target: int, count: int, at: int) -> int:
        done = copy(source, target, count, at)
        if not at:
            os.truncate(tmp_path / "file", size)
            with open(tmp_path / "file", "r+b") as file:
                file.seek(min(size, len(LARGE)) - 1)
                file.write(bytes([LARGE[-1] ^ 1]))
        return done

    monkeypatch.setattr("os.copy_file_range", copy_and_change)
    repo.writable_objects()
    before = open_fds()
    with pytest.raises(FormatError, match=match):
        receive(repo, data, diff_id, tmp_path)
    assert open_fds() == before
    assert streams(repo) == []
    assert threading.active_count() == 1


def test_a_wrong_digest_publishes_nothing(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"y" * 500)
    expected, actual = (member(b"f", char * 500) + END for char in (b"z", b"y"))
    repo.writable_objects()
    before = open_fds()
    with pytest.raises(DiffIdMismatchError) as failure:
        receive(repo, bad_file(500, 1, b"file"), sha256(expected), tmp_path)
    assert failure.value.expected == sha256(expected)
    assert failure.value.actual == sha256(actual)
    assert streams(repo) == []
    assert open_fds() == before


@pytest.mark.parametrize("end", range(0, 12_000, 397))
def test_a_stream_that_is_cut_off_publishes_nothing(repo: Repository, end: int) -> None:
    tar = system_tar()
    data = written(lambda writer: writer.metadata(tar))
    repo.writable_objects()
    before = open_fds()
    with piped(data, cut=end) as pipe, pytest.raises(FormatError):
        receive_layer(repo, PipeReader(pipe), [pipe], sha256(tar))
    assert open_fds() == before
    assert streams(repo) == []


def test_a_tar_that_is_none_is_refused_for_its_digest_first(repo: Repository) -> None:
    garbage = b"g" * 2000
    with pytest.raises(DiffIdMismatchError):
        receive(repo, written(lambda writer: writer.metadata(garbage)), sha256(b"else"))
    with pytest.raises(FormatError, match="a bad number") as failure:
        receive(repo, written(lambda writer: writer.metadata(garbage)), sha256(garbage))
    assert not isinstance(failure.value, DiffIdMismatchError)
    assert streams(repo) == []


def test_whoever_goes_away_ends_the_import(repo: Repository) -> None:
    reading, writing = os.pipe()
    cancelled = os.eventfd(0)

    class Gone:
        def fileno(self) -> int:
            return cancelled

    timer = threading.Timer(0.1, os.eventfd_write, (cancelled, 1))
    timer.start()
    os.write(writing, written(lambda writer: writer.metadata(header(b"f", 500))))
    with pytest.raises(CancelledError):
        receive_layer(repo, PipeReader(reading, Gone()), [], sha256(b""))
    timer.join()
    for fd in (reading, writing, cancelled):
        os.close(fd)
    assert streams(repo) == []


@pytest.mark.parametrize("path", ["/dev/null", "/", "/proc/self/exe"])
def test_the_stream_has_to_be_a_pipe(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(BootcError, match="no pipe"):
        PipeReader(fd)
    os.close(fd)
    reading, writing = os.pipe()
    with pytest.raises(BootcError, match="write end"):
        PipeReader(writing)
    os.close(reading)
    os.close(writing)


def test_what_is_not_there_cannot_be_given_away(source: Repository) -> None:
    before = open_fds()
    with pytest.raises(NotFoundError):
        export_layer(source, sha256(b""), lambda: None)
    assert open_fds() == before


def test_the_giver_waits_until_the_receiver_is_done(source: Repository) -> None:
    tar = system_tar()
    import_tar(source, io.BytesIO(tar), sha256(tar))
    ended = threading.Event()
    with export_layer(source, sha256(tar), ended.set) as outgoing:
        count = outgoing.layout.directories
        incoming = Incoming(outgoing.take(outgoing.layout.total), count)
    os.read(incoming.stream, 1 << 20)
    assert not ended.wait(0.2)
    incoming.close()
    join_exports()
    assert ended.is_set()


def test_a_giver_whose_objects_are_gone_is_noticed(source: Repository, repo: Repository) -> None:
    tar = system_tar()
    import_tar(source, io.BytesIO(tar), sha256(tar))
    stream = open_stream(source, layer_content_id(sha256(tar)))
    objects = os.open(f"{source.path}/objects", os.O_RDONLY)
    path = next(iter(Path(source.path, "objects").glob("*/*")))
    reading, writing = os.pipe()
    for found in Path(source.path, "objects").glob("*/*"):
        if found.stat().st_size == 5000:
            path = found
    path.unlink()
    with suppress(FileNotFoundError):
        write_layer(stream, objects, writing, 0)
    os.close(writing)
    with pytest.raises(BootcError):
        receive_layer(repo, PipeReader(reading), [objects], sha256(tar))
    os.close(reading)
    os.close(objects)
    assert streams(repo) == []
