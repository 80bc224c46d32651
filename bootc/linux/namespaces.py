# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Mount namespaces that a thread visits and comes back from: setns(2), mount_namespaces(7).

Whoever enters a namespace gets its root, as root and as working folder. A thread that lived in a
chroot would come back to another root than it left, so both are taken up again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bootc.linux import libc, mount

OURS, INIT = "/proc/self/ns/mnt", "/proc/1/ns/mnt"
_log = logging.getLogger(__name__)


def shared_with_init() -> bool:
    """Whether process 1 sees the same mounts. Raises `PermissionError` where it is hidden."""
    return os.readlink(OURS) == os.readlink(INIT)


@contextmanager
def own_mounts() -> Iterator[None]:
    """A mount namespace of our own for the block; mounts made in it are seen by nobody else."""
    with _way_back() as go_back:
        mount.isolate_mounts()
        try:
            yield
        finally:
            try:
                go_back()
            except OSError as error:
                # What was to be done is done; the namespace ends with the process.
                _log.warning("cannot leave the mount namespace: %s", error.strerror)


@contextmanager
def mounts_of_init() -> Iterator[None]:
    """The block runs in the mount namespace of process 1. Raises `OSError` if that is refused."""
    if shared_with_init():
        yield
        return
    with _way_back() as go_back:
        with _opened(INIT, os.O_RDONLY) as theirs:
            libc.setns(theirs, libc.CLONE_NEWNS)
        try:
            yield
        finally:
            go_back()


@contextmanager
def _way_back() -> Iterator[Callable[[], None]]:
    """What takes the thread back to the namespace, root and working folder of now."""
    with (
        _opened(OURS, os.O_RDONLY) as ours,
        _opened("/", os.O_PATH) as root,
        _opened(".", os.O_PATH) as folder,
    ):

        def go_back() -> None:
            libc.setns(ours, libc.CLONE_NEWNS)
            os.fchdir(root)
            os.chroot(".")
            os.fchdir(folder)

        yield go_back


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
