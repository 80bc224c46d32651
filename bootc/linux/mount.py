# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The new mount API (fsopen, fsmount, open_tree, move_mount) and context managers around mounts.

Standard library only: the initrd packs this file. Source: fsopen(2), open_tree(2), move_mount(2),
mount_setattr(2), include/uapi/linux/mount.h.
"""

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bootc.linux import libc

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1

_FSOPEN_CLOEXEC = 0x1
_FSMOUNT_CLOEXEC = 0x1
_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6

Option = tuple[str, str | None]
"""(key, value); a value of None makes it a flag."""


def _context_log(fd: int) -> str:
    """What the kernel wrote into the context's log: the real reason of an EINVAL."""
    lines: list[str] = []
    while True:
        try:
            lines.append(os.read(fd, 4096).decode("utf-8", "replace").strip())
        except OSError:
            return "; ".join(lines)


def fsmount(fstype: str, options: Sequence[Option], *, attributes: int = 0) -> int:
    """Make a detached mount of `fstype` and return its fd; `OSError` carries the kernel's log."""
    context = libc.syscall(libc.SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC, path=fstype)
    try:
        for key, value in options:
            if value is None:
                libc.syscall(libc.SYS_FSCONFIG, context, _SET_FLAG, key.encode(), None, 0)
            else:
                raw = os.fsencode(value)
                libc.syscall(libc.SYS_FSCONFIG, context, _SET_STRING, key.encode(), raw, 0)
        libc.syscall(libc.SYS_FSCONFIG, context, _CREATE, None, None, 0)
        return libc.syscall(libc.SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        said = _context_log(context)
        text = os.strerror(error.errno or 0) + (f" ({said})" if said else "")
        raise OSError(error.errno, text, f"mount {fstype}") from None
    finally:
        os.close(context)


def attach(mount_fd: int, target: str, *, at: int = libc.AT_FDCWD) -> None:
    """Put a detached mount (or a clone) at the path `target`, relative to the directory fd `at`."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    libc.syscall(libc.SYS_MOVE_MOUNT, mount_fd, b"", at, os.fsencode(target), flags, path=target)


def clone(path: str, *, at: int = libc.AT_FDCWD, recursive: bool = False) -> int:
    """A detached copy (bind mount) of what is at `path`; returns its fd."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= libc.AT_EMPTY_PATH
    return libc.syscall(libc.SYS_OPEN_TREE, at, os.fsencode(path), flags, path=path)


def set_readonly(mount_fd: int) -> None:
    """Make the mount read-only (mount_setattr)."""
    attr = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    libc.syscall(libc.SYS_MOUNT_SETATTR, mount_fd, b"", libc.AT_EMPTY_PATH, attr, len(attr))


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
    target = tempfile.mkdtemp(prefix="bootc-mount-")
    try:
        with mounted(source, target, fstype, flags=flags, data=data):
            yield target
    finally:
        os.rmdir(target)
