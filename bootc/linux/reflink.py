# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Copies of whole files: shared extents where the file system can, else bytes in the kernel.

FICLONE 0x40049409, argument: the source's descriptor. Source: include/uapi/linux/fs.h.
"""

import errno
import fcntl
import os

_FICLONE = 0x40049409
_CHUNK = 1 << 24
_NO_CLONE = (
    errno.EOPNOTSUPP,
    errno.EXDEV,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EPERM,
    errno.EBADF,
)
_NO_COPY = (*_NO_CLONE, errno.ETXTBSY)


def clone(fd: int, source: int) -> bool:
    """Make the empty file `fd` share the contents of `source`; False where that isn't possible."""
    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def copy(fd: int, source: int) -> int:
    """Write all that `source` holds to `fd`, from its position on; returns the bytes.

    The position of `source` is neither used nor moved.
    """
    done = 0
    try:
        while count := os.copy_file_range(source, fd, _CHUNK, done):
            done += count
    except OSError as error:
        if error.errno not in _NO_COPY or done:
            raise
    # Some file systems have no such copy, and some, as procfs, say 0 when there is more.
    while chunk := os.pread(source, 1 << 20, done):
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
        done += len(chunk)
    return done
