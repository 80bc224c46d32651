# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The new mount API: fsopen, fsmount, open_tree, move_mount, mount_setattr.

Standard library only, and little of it: the initrd packs this file. Source: fsopen(2),
open_tree(2), move_mount(2), mount_setattr(2), include/uapi/linux/mount.h.
"""

import os
import struct

from bootc.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_IDMAP = 0x00100000

_FSOPEN_CLOEXEC = 0x1
_FSMOUNT_CLOEXEC = 0x1
_OPEN_TREE_CLONE = 0x1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6

Option = tuple[str, str | int | None]
"""(key, value); a value of None makes it a flag, a number is a descriptor."""


def _context_log(fd: int) -> str:
    """What the kernel wrote into the context's log: the real reason of an EINVAL."""
    lines: list[str] = []
    while True:
        try:
            lines.append(os.read(fd, 4096).decode("utf-8", "replace").strip())
        except OSError:
            return "; ".join(lines)


def fsmount(fstype: str, options: "Sequence[Option]", *, attributes: int = 0) -> int:
    """Make a detached mount of `fstype` and return its fd; `OSError` carries the kernel's log."""
    context = libc.syscall(libc.SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC, path=fstype)
    try:
        for key, value in options:
            if value is None:
                libc.syscall(libc.SYS_FSCONFIG, context, _SET_FLAG, key.encode(), None, 0, path=key)
            elif isinstance(value, int):
                fd = value
                libc.syscall(libc.SYS_FSCONFIG, context, _SET_FD, key.encode(), None, fd, path=key)
            else:
                raw = os.fsencode(value)
                libc.syscall(
                    libc.SYS_FSCONFIG, context, _SET_STRING, key.encode(), raw, 0, path=key
                )
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


def set_writable(mount_fd: int) -> None:
    """Drop the mount's own read-only flag; that of its file system stays."""
    attr = struct.pack("=QQQQ", 0, MOUNT_ATTR_RDONLY, 0, 0)
    libc.syscall(libc.SYS_MOUNT_SETATTR, mount_fd, b"", libc.AT_EMPTY_PATH, attr, len(attr))


def set_idmap(mount_fd: int, user_namespace: int) -> None:
    """Show owners as the user namespace `user_namespace` (a descriptor of it) maps them.

    The mount must be detached and its file system capable of it; else `OSError` EINVAL.
    """
    attr = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    libc.syscall(libc.SYS_MOUNT_SETATTR, mount_fd, b"", libc.AT_EMPTY_PATH, attr, len(attr))


def move(source: str, target: str) -> None:
    """Move what is mounted at `source`, with all below it, to `target`."""
    libc.syscall(
        libc.SYS_MOVE_MOUNT,
        libc.AT_FDCWD,
        os.fsencode(source),
        libc.AT_FDCWD,
        os.fsencode(target),
        0,
        path=target,
    )
