# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Gives a layer away as a splitdirfdstream.

Of a repository what is inline becomes Metadata, each object the file `xx/yyyy…` in the directory of
objects. Of containers-storage what tar-split has becomes Metadata, each content the file that
podman unpacked, in the folder of its layer.

The receiver opens the files itself, so what goes through the pipe is small. Until it has closed the
lifetime descriptors (see `dirfdstream_fds`) the giver keeps the lock of the repository, or of the
storage, so that nothing is deleted meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from bootc.composefs.dirfdstream import StreamWriter
from bootc.composefs.dirfdstream_fds import Outgoing, plan_layout
from bootc.composefs.objects import object_path
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import OCI_BLOB, OCI_LAYER, SplitStream
from bootc.composefs.storage_layers import write_stored_layer
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.errors import BootcError, FormatError, chain_text
from bootc.storage.layer import open_layer as open_stored
from bootc.storage.opener import Opener
from bootc.storage.store import (
    DRIVER,
    LayerIndex,
    all_layers_locked,
    need_complete,
    open_stores,
)

_log = logging.getLogger(__name__)
_PIPE_SIZE = 1 << 20
_exports: set[threading.Thread] = set()
_OBJECTS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_layer(repo: Repository, diff_id: str) -> SplitStream:
    """The split stream of a layer, or of an artifact's blob. Raises `NotFoundError`."""
    content_id = layer_content_id(diff_id)
    if repo.find_stream(content_id) is None:
        raise NotFoundError(f"there is no layer {diff_id} in {repo.path}")
    stream = open_stream(repo, content_id)
    if stream.content_type not in (OCI_LAYER, OCI_BLOB):
        raise FormatError(content_id, None, f"is a {stream.content_type!r}, not a layer")
    return stream


def write_layer(stream: SplitStream, objects: int, fd: int, index: int) -> None:
    """Write the chunks to `fd`. `objects`: the directory, which is number `index` for the reader.

    Raises `OSError` if the reader goes away or an object is missing, `FormatError` for a damaged
    split stream; what was written then is not the file, and the reader notices by its digest.
    """
    writer = StreamWriter(fd)
    sizes: dict[int, int] = {}
    paths = [object_path(digest) for digest in stream.object_refs]
    for chunk in stream.chunks():
        if isinstance(chunk, bytes):
            writer.metadata(chunk)
            continue
        path = paths[chunk]
        size = sizes.get(chunk)
        if size is None:
            size = sizes[chunk] = os.stat(path, dir_fd=objects, follow_symlinks=False).st_size
        writer.file(size, index, path.encode())
    writer.flush()


def export_layer(repo: Repository, diff_id: str, on_end: Callable[[], None]) -> Outgoing:
    """Begin to give a layer away: the descriptors to pass, in their order.

    A thread writes the stream, then waits until the receiver is done and calls `on_end`; until then
    `repo` must stay open. If this raises, `on_end` is not called.
    """
    stream = open_layer(repo, diff_id)
    objects = os.open("objects", _OBJECTS, dir_fd=repo.fd)

    def write(pipe: int, slots: Sequence[int]) -> None:
        write_layer(stream, objects, pipe, slots[0])

    def end() -> None:
        os.close(objects)
        on_end()

    try:
        return _start(layer_content_id(diff_id), [objects], write, end)
    except BaseException:
        os.close(objects)
        raise


def export_stored_layer(
    root: str,
    layer_id: str,
    *,
    may_read_all: bool = False,
    pause: Callable[[float], object] = time.sleep,
) -> Outgoing:
    """Begin to give away the layer `layer_id` of the containers-storage whose graph root is `root`.

    Until the receiver is done the storage's lock is held. `may_read_all`: as
    `storage_layers.write_stored_layer` says. `pause`: what waits a moment for somebody who writes
    to the storage; it may raise. Raises `NotFoundError` if there is no such layer, `BootcError`.
    """
    stores = open_stores([root], DRIVER)
    with ExitStack() as stack:
        stack.enter_context(all_layers_locked(stores, pause=pause))
        layer = LayerIndex(stores).find(layer_id)
        if layer is None:
            raise NotFoundError(f"there is no layer {layer_id} in {root}")
        need_complete(layer)
        opener = stack.enter_context(Opener())
        reader = stack.enter_context(open_stored(layer, stores, opener))

        def write(pipe: int, slots: Sequence[int]) -> None:
            writer = StreamWriter(pipe)
            write_stored_layer(reader, writer, slots, may_read_all=may_read_all)

        directories = reader.directories
        held = stack.pop_all()
    try:
        return _start(layer_id, directories, write, held.close)
    except BaseException:
        held.close()
        raise


def _start(
    identity: str,
    directories: Sequence[int],
    write: Callable[[int, Sequence[int]], None],
    on_end: Callable[[], None],
) -> Outgoing:
    """Let a thread `write` (the pipe's end; the slots of `directories`) what `identity` names, and
    call `on_end` when the receiver is done; not if this raises."""
    layout = plan_layout(identity, len(directories))
    outgoing = Outgoing(layout, directories)
    pipe, released = outgoing.take_ends()
    enlarge(pipe)
    thread = threading.Thread(
        target=_give,
        args=(identity, partial(write, pipe, layout.slots), pipe, released, on_end),
        name="layer-export",
        daemon=True,
    )
    try:
        _exports.add(thread)
        thread.start()
    except BaseException:
        _exports.discard(thread)
        outgoing.close()
        os.close(pipe)
        os.close(released)
        raise
    return outgoing


def join_exports() -> None:
    """Wait until every layer that is being given away was received, or its receiver is gone."""
    for thread in list(_exports):
        thread.join()


def enlarge(pipe: int) -> None:
    """Let more fit into a pipe, if that is allowed: fewer turns between writer and reader."""
    with suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


def _give(
    identity: str,
    write: Callable[[], None],
    pipe: int,
    released: int,
    on_end: Callable[[], None],
) -> None:
    try:
        try:
            write()
        except (OSError, BootcError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.EPIPE):
                _log.warning("%s could not be given away: %s", identity, chain_text(error))
        finally:
            os.close(pipe)
        os.read(released, 1)
    finally:
        os.close(released)
        try:
            on_end()
        finally:
            _exports.discard(threading.current_thread())
