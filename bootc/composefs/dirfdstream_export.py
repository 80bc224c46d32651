# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Gives a repository's layer away as a splitdirfdstream: what is inline as Metadata, each object as
the file `xx/yyyy…` in the directory of objects.

The receiver opens the objects itself, so what goes through the pipe is small. Until it has closed
the lifetime descriptors (see `dirfdstream_fds`) the giver keeps the repository's lock, so that no
object is collected meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from bootc.composefs.dirfdstream import StreamWriter
from bootc.composefs.dirfdstream_fds import Outgoing, plan_layout
from bootc.composefs.objects import object_path
from bootc.composefs.repository import NotFoundError, Repository
from bootc.composefs.splitstream import OCI_BLOB, OCI_LAYER, SplitStream
from bootc.composefs.stored import layer_content_id, open_stream
from bootc.errors import BootcError, FormatError, chain_text

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
    try:
        layout = plan_layout(layer_content_id(diff_id), 1)
        outgoing = Outgoing(layout, [objects])
        pipe, released = outgoing.take_ends()
        enlarge(pipe)
        thread = threading.Thread(
            target=_give,
            args=(stream, objects, pipe, released, layout.slots[0], on_end),
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
    except BaseException:
        os.close(objects)
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
    stream: SplitStream,
    objects: int,
    pipe: int,
    released: int,
    index: int,
    on_end: Callable[[], None],
) -> None:
    try:
        try:
            write_layer(stream, objects, pipe, index)
        except (OSError, BootcError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.EPIPE):
                _log.warning("%s could not be given away: %s", stream.source, chain_text(error))
        finally:
            os.close(pipe)
        os.read(released, 1)
    finally:
        os.close(released)
        os.close(objects)
        _exports.discard(threading.current_thread())
        on_end()
