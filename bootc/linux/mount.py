# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Context managers around mounts, and the names of the mount API (libc, newmount) in one place."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from bootc.linux import libc
from bootc.linux.libc import (
    MNT_DETACH as MNT_DETACH,
)
from bootc.linux.libc import (
    MS_BIND as MS_BIND,
)
from bootc.linux.libc import (
    MS_MOVE as MS_MOVE,
)
from bootc.linux.libc import (
    MS_NODEV as MS_NODEV,
)
from bootc.linux.libc import (
    MS_NOEXEC as MS_NOEXEC,
)
from bootc.linux.libc import (
    MS_NOSUID as MS_NOSUID,
)
from bootc.linux.libc import (
    MS_PRIVATE as MS_PRIVATE,
)
from bootc.linux.libc import (
    MS_RDONLY as MS_RDONLY,
)
from bootc.linux.libc import (
    MS_REC as MS_REC,
)
from bootc.linux.libc import (
    MS_REMOUNT as MS_REMOUNT,
)
from bootc.linux.newmount import (
    MOUNT_ATTR_RDONLY as MOUNT_ATTR_RDONLY,
)
from bootc.linux.newmount import (
    Option as Option,
)
from bootc.linux.newmount import (
    attach as attach,
)
from bootc.linux.newmount import (
    clone as clone,
)
from bootc.linux.newmount import (
    fsmount as fsmount,
)
from bootc.linux.newmount import (
    set_readonly as set_readonly,
)


def isolate_mounts() -> None:
    """Give this process a mount namespace of its own: its mounts end with it, come what may."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, MS_REC | MS_PRIVATE)


@contextmanager
def mounted(
    source: str | None, target: str, fstype: str | None, *, flags: int = 0, data: str = ""
) -> Iterator[str]:
    """A mount that lasts as long as the block. Never lazy: what is busy is an error to see."""
    libc.mount(source, target, fstype, flags, data)
    try:
        yield target
    finally:
        libc.umount2(target)


@contextmanager
def mounted_temporarily(
    source: str, fstype: str, *, flags: int = 0, data: str = ""
) -> Iterator[str]:
    """Like `mounted`, at a fresh folder that goes with it."""
    import tempfile  # start-up time: it brings random and hashlib

    target = tempfile.mkdtemp(prefix="bootc-mount-")
    try:
        with mounted(source, target, fstype, flags=flags, data=data):
            yield target
    finally:
        os.rmdir(target)
