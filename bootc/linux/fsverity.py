# SPDX-License-Identifier: Apache-2.0 OR MIT
"""fs-verity by its two ioctls. Source: include/uapi/linux/fsverity.h.

* FS_IOC_ENABLE_VERITY 0x40806685, argument of 128 bytes: u32 version = 1, u32 hash, u32 block size,
  u32 salt size, u64 salt, u32 signature size, u32 0, u64 signature, 11 x u64 0;
* FS_IOC_MEASURE_VERITY 0xc0046686: u16 hash, u16 size (in: the room, out: the length), the digest.

The block size is always 4096 and there is never a salt, as composefs wants it.
"""

import errno
import fcntl
import struct
import time

SHA256 = 1
SHA512 = 2
DIGEST_SIZE = {SHA256: 32, SHA512: 64}

_ENABLE = 0x40806685
_MEASURE = 0xC0046686
_NO_VERITY = (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP)
_BUSY_TRIES = 50
_BUSY_PAUSE = 0.001


def enable(fd: int, algorithm: int) -> None:
    """Switch verity on for the file `fd`, opened read-only and with no writer left.

    Raises `OSError`: EEXIST when it is on already, ETXTBSY when a writer is left, EOPNOTSUPP or
    ENOTTY when the file system has none.
    """
    fcntl.ioctl(fd, _ENABLE, struct.pack("=IIIIQIIQ88x", 1, algorithm, 4096, 0, 0, 0, 0, 0))


def enable_patiently(fd: int, algorithm: int) -> None:
    """`enable`, again and again for a while when a writer is left (ETXTBSY).

    A thread of ours that is between fork and exec shares our writable descriptor, closed though
    it is here, for some milliseconds.
    """
    for _ in range(_BUSY_TRIES):
        try:
            enable(fd, algorithm)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
        else:
            return
        time.sleep(_BUSY_PAUSE)
    enable(fd, algorithm)


def measure(fd: int) -> tuple[int, bytes] | None:
    """(algorithm, digest) that the kernel enforces for `fd`, or None when verity is not on."""
    room = bytearray(struct.pack("=HH", 0, 64) + bytes(64))
    try:
        fcntl.ioctl(fd, _MEASURE, room)
    except OSError as error:
        if error.errno in _NO_VERITY:
            return None
        raise
    algorithm, size = struct.unpack_from("=HH", room)
    return algorithm, bytes(room[4 : 4 + size])


def is_available(fd: int) -> bool:
    """Whether the file system of `fd`, a file or a directory, has fs-verity and has it enabled.

    It is asked without writing: what measures says ENODATA of a file that verity is not on for.
    """
    try:
        fcntl.ioctl(fd, _MEASURE, bytearray(struct.pack("=HH", 0, 64) + bytes(64)))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return True
        if error.errno in _NO_VERITY:
            return False
        raise
    return True


def is_unsupported(error: OSError) -> bool:
    """Whether `error`, from `enable`, says that this file system has no verity at all."""
    return error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS)
