# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Random directories on a real file system, the same for the same generator.

With all that one can hold: odd names, hard links, devices and whiteouts, sockets, extended
attributes of every kind that the file system takes, files around the inline limit, times before
1970, directories of several blocks. It takes root: others can't make half of that.
"""

from __future__ import annotations

import errno
import os
import random
import stat as st
import struct

_NAME_BYTES = bytes(byte for byte in range(1, 256) if byte != 0x2F)
_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789._-"
_ODD = (b"!", b"#", b"-", b"...", b".a", b"00", b"ff", b"Aa", b"a=b", b" ", b"\n", b"\\", b"usr")
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in (
        *((0x01, 6, 0xFFFFFFFF), (0x02, 4, 1000), (0x04, 4, 0xFFFFFFFF)),
        *((0x10, 4, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)),
    )
)
_UNSUPPORTED = (
    errno.EOPNOTSUPP,
    errno.ENOSPC,
    errno.E2BIG,
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
    errno.ERANGE,
)


def make_tree(root: bytes, rng: random.Random, *, system: bool) -> None:
    """Make a tree below the empty directory `root`; `system`: with /usr, /boot, /sysroot, /run."""
    times = [
        rng.choice((0, rng.randrange(1 << 31), -rng.randrange(1 << 31))) * 10**9
        + rng.choice((0, 1, rng.randrange(10**9)))
        for _ in range(rng.choice((1, 1, 3, 20)))
    ]
    folders = [root]
    if system:
        for name in (b"usr", b"boot", b"sysroot", b"run"):
            if name == b"usr" or rng.random() < 0.8:
                folders.append(root + b"/" + name)
                os.mkdir(folders[-1])
    total = rng.choice((0, 3, 10, 30, 60, 150))
    files: list[bytes] = []
    made = 0
    while made < total:
        parent = rng.choice(folders)
        longest = rng.choice((1, 8, 30, 255))
        for _ in range(min(rng.choice((1, 5, 20, 100)), total - made)):
            made += 1
            path = parent + b"/" + _name(rng, longest)
            if len(path) > 3000 or os.path.lexists(path):
                continue
            if files and rng.random() < 0.08:
                os.link(rng.choice(files), path, follow_symlinks=False)
            elif rng.random() < 0.15:
                os.mkdir(path)
                folders.append(path)
            else:
                _make_leaf(path, rng)
                if not _is_whiteout(path):
                    files.append(path)
    for path in (*folders, *files):
        _decorate(path, rng, times)
    for path in (*files, *reversed(folders)):
        time = rng.choice(times)
        os.utime(path, ns=(0, time), follow_symlinks=False)


def _name(rng: random.Random, longest: int) -> bytes:
    if rng.random() < 0.06:
        return rng.choice(_ODD)
    alphabet = _NAME_BYTES if rng.random() < 0.2 else _PLAIN
    while True:
        name = bytes(rng.choices(alphabet, k=rng.randint(1, longest)))
        if name not in (b".", b".."):
            return name


def _is_whiteout(path: bytes) -> bool:
    found = os.lstat(path)
    return st.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _make_leaf(path: bytes, rng: random.Random) -> None:
    kind = rng.choices(
        (b"file", b"link", b"char", b"block", b"fifo", b"socket"), (70, 14, 7, 3, 3, 3)
    )
    mode = rng.choice((0o644, 0o755, 0o600, 0o4755, 0))
    match kind[0]:
        case b"file":
            size = rng.choice((0, 1, 63, 64, 65, 100, 4096, 4097, 20000))
            with open(path, "wb") as file:
                file.write(rng.randbytes(size) if rng.random() < 0.8 else bytes(size))
        case b"link":
            target = rng.choices(
                _NAME_BYTES if rng.random() < 0.2 else _PLAIN, k=rng.randint(1, 900)
            )
            os.symlink(bytes(target), path)
        case b"char":
            number = os.makedev(rng.randrange(4000), rng.randrange(1 << 20))
            os.mknod(path, st.S_IFCHR | mode, rng.choice((0, number)))
        case b"block":
            os.mknod(
                path, st.S_IFBLK | mode, os.makedev(rng.randrange(4000), rng.randrange(1 << 20))
            )
        case b"fifo":
            os.mkfifo(path, mode)
        case _:
            os.mknod(path, st.S_IFSOCK | mode)


def _decorate(path: bytes, rng: random.Random, times: list[int]) -> None:
    """Owner, mode, extended attributes."""
    owner, group = (rng.choice((0, 0, 0, 1000, 65535, 65536, 4294967294)) for _ in range(2))
    os.lchown(path, owner, group)
    mode = os.lstat(path).st_mode
    if not st.S_ISLNK(mode):
        os.chmod(path, rng.choice((0o644, 0o755, 0o1777, 0o4711, 0o2755, 0, 0o7777)))
    while rng.random() < 0.35:
        name, value = _attribute(rng)
        if name.startswith(b"user.") and not (st.S_ISREG(mode) or st.S_ISDIR(mode)):
            continue
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


def _attribute(rng: random.Random) -> tuple[bytes, bytes]:
    value = rng.choice((b"", b"1", b"same", rng.randbytes(rng.randrange(60)), rng.randbytes(500)))
    how = rng.random()
    if how < 0.15:
        return b"security.capability", _CAPABILITY
    if how < 0.25:
        return rng.choice((b"system.posix_acl_access", b"system.posix_acl_default")), _ACL
    if how < 0.35:
        return b"security.selinux", b"system_u:object_r:%b_t:s0\0" % rng.choice((b"usr", b"etc"))
    if how < 0.5:
        mark = rng.choice((b"opaque", b"whiteout", b"origin", b"overlay.x", b"x"))
        return rng.choice((b"trusted.overlay.", b"user.overlay.")) + mark, value
    alphabet = _NAME_BYTES if rng.random() < 0.05 else _PLAIN
    name = bytes(rng.choices(alphabet, k=rng.choice((1, 5, rng.randint(1, 240)))))
    return rng.choice((b"user.", b"trusted.", b"security.")) + name, value
