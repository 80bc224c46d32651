# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Takes a layer from a splitdirfdstream into a repository, and believes nothing that it says.

The chunks are put together to the file that they stand for, which is hashed; only if its digest is
the diff id a stream is published. What was stored until then are objects that nothing refers to,
for the garbage collection.

* A stream that begins with Metadata is a tar. It is parsed as `layers` parses one, so what is
  published is what a pull of the same tar publishes, byte for byte, however the sender cut it.
* One that begins with a content is a blob of an artifact and becomes one object.

Where a FileBacked chunk is what the parser wants next, a content of more than 64 bytes, the file
itself becomes the object: an object that is here already and has that name is used if the kernel
vouches for it; else the extents are shared; else, with `zerocopy`, the file is hard-linked (and
gets fs-verity); else, without, it is copied. What is hashed is always what is stored, so a file
that changes meanwhile changes the digest. The one exception: of a shared file that only root and we
may write the original is hashed instead of the clone, under a lease that says whether anybody
opened it for writing meanwhile (`filelease`). The original's pages are likely to be in memory, a
clone's never are.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bootc import fs
from bootc.composefs.clones import clone_file
from bootc.composefs.digest import Algorithm, Buffer, digest_of_descriptor
from bootc.composefs.dirfdstream import SOURCE, Data, FileBacked, StreamReader, open_beneath
from bootc.composefs.layers import SPOOL, ImportedLayer, ImportInput
from bootc.composefs.objects import ObjectCounts, ObjectStore, Route
from bootc.composefs.pull import space_for_layer, writer_count
from bootc.composefs.refs import parse_digest
from bootc.composefs.repository import Repository
from bootc.composefs.splitstream import OCI_BLOB, OCI_LAYER, SplitStreamWriter
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.composefs.writers import Batch, Item, WriterPool
from bootc.errors import BootcError, FormatError
from bootc.linux import reflink
from bootc.linux.verity_descriptor import read_descriptor
from bootc.oci.model import check_digest, digest_hasher
from bootc.oci.tarstream import Entry
from bootc.tree import Inline, Leaf, Stat

if TYPE_CHECKING:
    from hashlib import _Hash

_PIECE = 1 << 20
_BUFFER = 256 << 10
_COPIED = 2 << 20
"""Bytes that are copied, then hashed while they are in the processor's cache."""
_WRONG_MODE = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH


class DiffIdMismatchError(FormatError):
    """What came has another digest than it should."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(
            SOURCE,
            None,
            f"has the digest {actual}, expected {expected}",
            hint="the layer is damaged, or another one: pull it again where it comes from",
        )
        self.expected = expected
        self.actual = actual


class CancelledError(BootcError):
    """Whoever wanted this went away."""


class Cancellation(Protocol):
    """Something to poll: its descriptor becomes readable when there is nothing to do any more."""

    def fileno(self) -> int: ...


class PipeReader:
    """Reads a pipe until its end, or until `cancelled`. Borrows both."""

    def __init__(self, fd: int, cancelled: Cancellation | None = None) -> None:
        """Raises `BootcError` if `fd` isn't the read end of a pipe, or a stream socket."""
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            raise BootcError("the first descriptor is no pipe", hint="pass the pipe's read end")
        if stat.S_ISFIFO(kind) and _access_mode(fd) == os.O_WRONLY:
            raise BootcError("the first descriptor is the pipe's write end", hint="pass the other")
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._end = select.poll()
        self._cancelled = -1
        if cancelled is not None:
            self._cancelled = cancelled.fileno()
            self._poll.register(self._cancelled, select.POLLIN)
            self._end.register(self._cancelled, select.POLLIN)

    def check(self) -> None:
        """Raise `CancelledError` if that is so."""
        if self._cancelled >= 0 and self._end.poll(0):
            raise CancelledError("the client went away")

    def read(self, size: int = -1, /) -> bytes:
        while True:
            ready = {fd for fd, _ in self._poll.poll()}
            if self._cancelled in ready:
                raise CancelledError("the client went away")
            try:
                return os.read(self._fd, _PIECE if size < 0 else size)
            except BlockingIOError:
                continue  # somebody else reads this pipe, too


def _access_mode(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE


class _Contents:
    """The file that a stream stands for, hashed on the way; see `blobs.Readable`."""

    def __init__(
        self, reader: StreamReader, directories: Sequence[int], hasher: _Hash, size_max: int
    ) -> None:
        self.size = 0
        self._reader = reader
        self._directories = directories
        self._hasher = hasher
        self._max = size_max
        self._chunk: Data | FileBacked | None = None
        self._ahead: list[Data | FileBacked | None] = []
        self._fd = -1
        self._at = self._left = 0
        self._buffer = memoryview(bytearray(_BUFFER))

    @property
    def digest(self) -> str:
        return f"{self._hasher.name}:{self._hasher.hexdigest()}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def peek(self) -> Data | FileBacked | None:
        """The chunk that comes next; None at the end. Only between chunks."""
        while not self._ahead:
            chunk = self._reader.next()
            if isinstance(chunk, Data) and not chunk.size and not chunk.content:
                continue  # an empty Metadata says nothing
            self._ahead.append(chunk)
        return self._ahead[0]

    def hash(self, data: Buffer) -> None:
        self._hasher.update(data)
        self.size += len(data)
        if self.size > self._max:
            raise FormatError(SOURCE, self._reader.offset(), f"is more than {self._max} bytes")

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if self._left:
                piece = os.pread(self._fd, min(self._left, _PIECE), self._at)
                if not piece:
                    raise FormatError(SOURCE, self._reader.offset(), "a file became shorter")
                self._at += len(piece)
                self._left -= len(piece)
            elif isinstance(self._chunk, Data):
                piece = self._reader.data(_PIECE)
            else:
                piece = b""
            if piece:
                self.hash(piece)
                return piece
            self.close()
            self._chunk = self.peek()
            if self._chunk is None:
                return b""
            self._ahead.pop(0)
            if isinstance(self._chunk, FileBacked):
                self._fd = self.open(self._chunk)
                self._at, self._left = 0, self._chunk.size

    def take_file(self, size: int) -> FileBacked | None:
        """The next chunk, if it begins here and is a file of this size: the caller's to read."""
        if self._left or (isinstance(self._chunk, Data) and self._reader.unread):
            return None
        self.close()
        self._chunk = None
        chunk = self.peek()
        if not isinstance(chunk, FileBacked) or chunk.size != size:
            return None
        self._ahead.pop(0)
        return chunk

    def only_file(self) -> FileBacked | None:
        """The file that is all there is, if that is so: the caller's to read."""
        first = self.peek()
        if not isinstance(first, FileBacked):
            return None
        self._ahead.append(self._reader.next())
        if self._ahead[1] is not None:
            return None
        self._ahead.pop(0)
        return first

    def open(self, chunk: FileBacked) -> int:
        """The file that a chunk means; the caller's to close."""
        if chunk.index >= len(self._directories):
            raise FormatError(
                SOURCE,
                self._reader.offset(),
                f"there is no directory {chunk.index}: {len(self._directories)} were passed",
            )
        if self.size + chunk.size > self._max:
            raise FormatError(SOURCE, self._reader.offset(), f"is more than {self._max} bytes")
        return open_beneath(self._directories[chunk.index], chunk)

    def hash_either(self, size: int) -> Callable[[int], bytes]:
        """What hashes the file that it is called with, `size` bytes long, and returns what it
        holds if that isn't much. Called again, it forgets the file before."""
        before: _Hash | None = None
        at = self.size

        def read(fd: int) -> bytes:
            nonlocal before
            if before is None:
                before = self._hasher.copy()
            else:
                self._hasher, self.size = before.copy(), at
            if size > SPOOL:
                self.hash_file(fd, size)
                return b""
            data = b"".join(read_pieces(fd, size))
            self.hash(data)
            return data

        return read

    def hash_file(self, fd: int, size: int, *, begin: int = 0) -> None:
        """Hash a file that is going to be stored, or what it has from `begin` to `size`.

        Through one buffer that stays in the processor's cache."""
        at = begin
        while at < size:
            count = os.preadv(fd, [self._buffer], at)
            if not count:
                raise FormatError(SOURCE, None, f"a file became shorter: {at} bytes of {size}")
            piece = self._buffer[: min(count, size - at)]
            self.hash(piece)
            at += len(piece)

    def copy_file(self, fd: int, size: int, own: int) -> None:
        """Copy a file to `own`, which is readable and nobody else's, and hash what that holds."""
        done = 0
        for count in reflink.copy_pieces(own, fd, piece=_COPIED):
            begin, done = done, done + count
            if done > size:
                break
            self.hash_file(own, done, begin=begin)
        if done != size:
            raise FormatError(SOURCE, None, f"a file changed its length, which was {size}")


def read_pieces(fd: int, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, from which no position is used."""
    at = 0
    while at < size:
        piece = os.pread(fd, min(_PIECE, size - at), at)
        if not piece:
            raise FormatError(SOURCE, None, f"a file became shorter: {at} bytes instead of {size}")
        at += len(piece)
        yield piece


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


class _StreamInput(ImportInput):
    """A tar whose contents may be files already."""

    def __init__(
        self,
        contents: _Contents,
        pool: WriterPool,
        writer: SplitStreamWriter,
        source: str,
        unpacked_max: int,
        *,
        zerocopy: bool,
        check: Callable[[], None],
    ) -> None:
        super().__init__(contents, pool, writer, source, unpacked_max)
        self._contents = contents
        self._zerocopy = zerocopy
        self._check = check

    def external(self, leaf: Leaf, size: int) -> None:
        self._check()
        file = self._contents.take_file(size) if self._at == len(self._data) else None
        if file is None:
            super().external(leaf, size)
            return
        self._cut()
        self._run = 0
        item = make_item(self._contents, self._pool, leaf, file, zerocopy=self._zerocopy)
        self._base += len(self._data) + size
        self._data, self._at = b"", 0
        self._put(item)


def make_item(
    contents: _Contents, pool: WriterPool, leaf: Leaf, file: FileBacked, *, zerocopy: bool
) -> Item:
    """The file on its way into the store, by the shortest way there is; it is hashed."""
    store, size = pool.store, file.size
    digest = _named_object(file.name, store.algorithm)
    if digest is not None:
        found = store.find(digest, size)
        if found is not None:
            with _closing(found):
                contents.hash_file(found, size)
            return Item(leaf, size, digest=digest)
    with _closing(contents.open(file)) as source:
        measured = _measured(store, source)
        item = clone_file(store, leaf, source, size, contents.hash_either(size))
        if item is not None:
            _check_clone(store, item)
            item.measured = measured
            return item
        if zerocopy:
            _check_link(source, file)
            linked = store.import_file(source, zerocopy=True)
            contents.hash_file(source, size)
            return Item(leaf, size, digest=linked)
        if size <= SPOOL:
            data = b"".join(read_pieces(source, size))
            contents.hash(data)
            return Item(leaf, size, data, measured=measured)
        own = store.create(readable=True)
        try:
            contents.copy_file(source, size, own)
        except BaseException:
            store.discard(own)
            raise
    return Item(leaf, size, fd=own, measured=measured, route=Route.COPIED)


def _measured(store: ObjectStore, source: int) -> bytes:
    """The digest of the file `source` if the kernel has it, and the store's kernel hasn't: so a
    sealed file's content isn't hashed once more."""
    if store.measures:
        return b""
    descriptor = read_descriptor(source)
    return (descriptor and digest_of_descriptor(descriptor, store.algorithm)) or b""


def _check_link(fd: int, file: FileBacked) -> None:
    """Refuse to make a file an object that its owner, or others, may change."""
    found = os.fstat(fd)
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & _WRONG_MODE:
        raise FormatError(
            SOURCE,
            file.name[:200].decode("utf-8", "replace"),
            f"may not be hard-linked: it belongs to user {found.st_uid} and has the mode "
            f"{found.st_mode & 0o7777:04o}",
            hint="send the layer without zerocopy",
        )


def _check_clone(store: ObjectStore, item: Item) -> None:
    if os.fstat(item.fd).st_size != item.size:
        Batch(items=[item]).discard(store)
        raise FormatError(SOURCE, None, "a file changed its length while it was shared")


def _named_object(name: bytes, algorithm: Algorithm) -> bytes | None:
    """The digest that a repository of this algorithm means by the file name `xx/yyyy…`."""
    if name[2:3] != b"/":
        return None
    return parse_digest((name[:2] + name[3:]).decode("ascii", "replace"), algorithm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A layer that is in the repository now, under `digest`; `counts` tells of its contents."""

    digest: bytes
    already_present: bool
    counts: ObjectCounts
    entries: tuple[Entry, ...] | None = None
    inlined: int = 0


def receive_layer(
    repo: Repository,
    pipe: PipeReader,
    directories: Sequence[int],
    diff_id: str,
    *,
    zerocopy: bool = False,
    unpacked_max: int | None = None,
) -> Received:
    """Store and publish the layer that comes through `pipe`, whose diff id has to be `diff_id`.

    `directories` are what the chunks' indices count. The pipe is read to its end, also if the layer
    is here already; then nothing else is done. With `zerocopy` nothing is copied (but what the
    stream itself holds), or this fails. Raises `FormatError` for what is wrong with the stream or
    the files, `DiffIdMismatchError`, `CancelledError`, or another `BootcError`.
    """
    check_digest(diff_id, SOURCE, "diff_id")
    limit = space_for_layer(repo, unpacked_max)
    contents = _Contents(StreamReader(pipe), directories, digest_hasher(diff_id), limit)
    try:
        first = contents.peek()
        tar = not isinstance(first, FileBacked) and not (first is not None and first.content)
        present = _find_stored(repo, diff_id, tar=tar)
        if present is not None:
            while pipe.read(_PIECE):
                pass
            return present
        before = repo.counts()
        with WriterPool(repo.writable_objects(), writer_count()) as pool:
            if tar:
                layer = _import_tar(repo, contents, pool, pipe, diff_id, limit, zerocopy=zerocopy)
            else:
                layer = _import_blob(repo, contents, pool, diff_id, zerocopy=zerocopy)
        counts = repo.counts() - before
    except OSError as error:
        raise repo.storing_failed(error) from error
    finally:
        contents.close()
    pipe.check()
    return Received(
        digest=repo.write_stream(layer_content_id(diff_id), layer.stream),
        already_present=False,
        counts=counts,
        entries=layer.entries,
        inlined=layer.inlined,
    )


def _find_stored(repo: Repository, diff_id: str, *, tar: bool) -> Received | None:
    """The layer, if it is stored as what it should be: see `pull._find_layer`."""
    content_id = layer_content_id(diff_id)
    digest = repo.find_stream(content_id)
    if digest is None:
        return None
    stream = open_stream(repo, content_id)
    if tar and stream.content_type != OCI_LAYER:
        return None
    counts = ObjectCounts(existing=len(stream.object_refs))
    return Received(digest=digest, already_present=True, counts=counts)


def _import_tar(
    repo: Repository,
    contents: _Contents,
    pool: WriterPool,
    pipe: PipeReader,
    diff_id: str,
    limit: int,
    *,
    zerocopy: bool,
) -> ImportedLayer:
    writer = SplitStreamWriter(repo.algorithm, OCI_LAYER)
    source = f"layer {diff_id}"
    tar = _StreamInput(contents, pool, writer, source, limit, zerocopy=zerocopy, check=pipe.check)
    try:
        entries = tar.store_all()
    except FormatError as error:
        if error.source != SOURCE:
            # A wrong digest explains more than what the tar looks like.
            _verify(contents, diff_id)
        raise
    _verify(contents, diff_id)
    return ImportedLayer(stream=writer.finish(), entries=entries, inlined=tar.inlined)


def _verify(contents: _Contents, diff_id: str) -> None:
    while contents.read(_PIECE):
        pass
    if contents.digest != diff_id:
        raise DiffIdMismatchError(diff_id, contents.digest)


def _import_blob(
    repo: Repository, contents: _Contents, pool: WriterPool, diff_id: str, *, zerocopy: bool
) -> ImportedLayer:
    store = pool.store
    file = contents.only_file()
    if file is not None:
        item = make_item(contents, pool, _leaf(), file, zerocopy=zerocopy)
    else:
        item = Item(_leaf(), 0, fd=store.create())
    batch = Batch(items=[item])
    try:
        if file is None:
            while piece := contents.read(_PIECE):
                fs.write_all(item.fd, piece)
            item.size = contents.size
        _verify(contents, diff_id)
    except BaseException:
        batch.discard(store)
        raise
    pool.submit(batch)
    pool.finish(batch)
    writer = SplitStreamWriter(repo.algorithm, OCI_BLOB)
    writer.external(item.digest, item.size)
    return ImportedLayer(stream=writer.finish())


def _leaf() -> Leaf:
    return Leaf(Stat(), Inline(b""))
