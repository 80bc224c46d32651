# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Copies of whole files: shared extents where the file system can, else bytes in the kernel.

FICLONE 0x40049409, argument: the source's descriptor. FIDEDUPERANGE 0xc0189436, argument: offset
and length in the source (u64), count of targets (u16), 6 bytes; then for each target descriptor
(s64), offset (u64), out: bytes shared (u64), status (s32: 0, 1 if the contents differ, -errno), 4
bytes. Source: include/uapi/linux/fs.h, ioctl_fideduperange(2).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

_FICLONE = 0x40049409
_FIDEDUPERANGE = 0xC0189436
_DEDUPE = struct.Struct("=QQHxxxxxxqQQixxxx")
_DEDUPE_MAX = 1 << 24
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
_NO_SHARING = (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS)
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


def share(fd: int, source: int, size: int) -> int:
    """Let the first `size` bytes of `fd` be the extents of `source`, where both have the same
    contents: the kernel compares. Returns the bytes that are shared now, none if they differ.

    `fd` may be open for reading only, if we are root or its owner. Raises `OSError` with EOPNOTSUPP
    or EXDEV where the file systems have nothing like it; small files may not be shared anywhere.
    """
    done = 0
    while done < size:
        length = min(_DEDUPE_MAX, size - done)
        request = bytearray(_DEDUPE.pack(done, length, 1, fd, done, 0, 0))
        try:
            fcntl.ioctl(source, _FIDEDUPERANGE, request)
            count, status = _DEDUPE.unpack(request)[5:]
        except OSError as error:
            count, status = 0, -(error.errno or errno.EIO)
        if -status in _NO_SHARING:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if status < 0 and -status not in (errno.EINVAL, errno.EPERM, errno.ETXTBSY):
            raise OSError(-status, os.strerror(-status))
        if status or not count:
            break
        done += count
    return min(done, size)


def copy(fd: int, source: int) -> int:
    """Write all that `source` holds to `fd`, from its position on; returns the bytes.

    The position of `source` is neither used nor moved.
    """
    done = 0
    for count in copy_pieces(fd, source):
        done += count
    return done


def copy_pieces(fd: int, source: int, *, piece: int = _CHUNK) -> Iterator[int]:
    """What `copy` does, a piece of at most so many bytes at a time: the size of each, when it is
    written."""
    done = 0
    try:
        while count := os.copy_file_range(source, fd, piece, done):
            done += count
            yield count
    except OSError as error:
        if error.errno not in _NO_COPY or done:
            raise
    # Some file systems have no such copy, and some, as procfs, say 0 when there is more.
    while chunk := os.pread(source, min(piece, 1 << 20), done):
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
        done += len(chunk)
        yield len(chunk)
