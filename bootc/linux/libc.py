# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The table of C library functions and raw system calls that Python's `os` does not offer.

Every function raises `OSError` with the errno and, where there is one, the path. Standard library
only, and few modules of it, because the initrd packs this file. Source: the kernel's uapi headers
and syscalls(2); the numbers from 424 on are the same on every architecture.
"""

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

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

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_SYNC_FILE_RANGE_WRITE = 2

RB_AUTOBOOT = 0x01234567
RB_HALT = 0xCDEF0123
RB_POWER_OFF = 0x4321FEDC

_SYS_FINIT_MODULE = {
    "x86_64": 313,
    "aarch64": 273,
    "riscv64": 273,
    "loongarch64": 273,
    "ppc64le": 353,
    "s390x": 344,
}


def fail(path: str | bytes | None = None) -> OSError:
    """The `OSError` of the call that just failed."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def syscall(number: int, *args: object, path: str | bytes | None = None) -> int:
    """Make a raw system call: ints go as longs, bytes as `char *`, None as a null pointer."""
    ready = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _libc.syscall(ctypes.c_long(number), *ready)
    if result < 0:
        raise fail(path)
    return result


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    ok: int = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if fstype is None else fstype.encode(),
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )
    if ok < 0:
        raise fail(target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        raise fail(target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(flags) < 0:
        raise fail()


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace that `fd` stands for, of the `kind` that unshare(2) names."""
    if _libc.setns(fd, kind) < 0:
        raise fail()


def syncfs(fd: int) -> None:
    """syncfs(2): write out the file system that `fd` lies on."""
    if _libc.syncfs(fd) < 0:
        raise fail()


def start_writing(fd: int) -> None:
    """sync_file_range(2): let the disk begin with what was written to `fd`, and wait for nothing.

    A hint, so that the next `syncfs` has less to do: what can't be begun is no error.
    """
    begin = getattr(_libc, "sync_file_range", None)
    if begin is not None:
        begin(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def trim_memory() -> None:
    """malloc_trim(3): give memory that is free in the allocator's hands back to the kernel.

    glibc keeps what threads freed for those threads. Another C library, which has no such call,
    keeps what it keeps.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def renameat2(old_fd: int, old: str, new_fd: int, new: str, flags: int) -> None:
    """renameat2(2), for RENAME_EXCHANGE and RENAME_NOREPLACE."""
    if _libc.renameat2(old_fd, os.fsencode(old), new_fd, os.fsencode(new), flags) < 0:
        raise fail(new)


def link_fd(fd: int, new_fd: int, new: str) -> None:
    """Give the unnamed file `fd` (O_TMPFILE) the name `new` below `new_fd`.

    CPython's `os.link` makes a plain link() of /proc/self/fd/N when no directory fd is given, and
    that fails with EXDEV; so the call is made here.
    """
    source = f"/proc/self/fd/{fd}".encode()
    if _libc.linkat(AT_FDCWD, source, new_fd, os.fsencode(new), AT_SYMLINK_FOLLOW) < 0:
        raise fail(new)


def openat2(
    at: int, path: str, flags: int, *, mode: int = 0, resolve: int = RESOLVE_BENEATH
) -> int:
    """openat2(2): open `path` below the directory fd `at`; a symlink out of it is an EXDEV."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return syscall(SYS_OPENAT2, at, os.fsencode(path), how, len(how), path=path)


def finit_module(fd: int, parameters: str = "") -> None:
    """finit_module(2): load the kernel module that the file `fd` holds."""
    number = _SYS_FINIT_MODULE.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "the number of finit_module is not known", os.uname().machine)
    syscall(number, fd, os.fsencode(parameters), 0)


def reboot(how: int) -> None:
    """reboot(2) with one of RB_*: at once, so sync first."""
    if _libc.reboot(ctypes.c_int(how & 0xFFFFFFFF)) < 0:
        raise fail()


def set_child_subreaper() -> None:
    """Become the parent of descendants whose own parent ends, in place of process 1."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise fail()


def set_parent_death_signal(number: int) -> None:
    """Have this signal sent to us when the thread that started us ends; an exec keeps that."""
    if _libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) != 0:
        raise fail()
