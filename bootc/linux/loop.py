# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Loop devices. Source: include/uapi/linux/loop.h, loop(4).

LOOP_CONFIGURE (0x4C0A) takes `struct loop_config`: u32 fd, u32 block size (0: the device's own),
`struct loop_info64` (232 bytes, of which only `lo_flags`, a u32 at 52, matters here), 8 x u64 0.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_READ_ONLY = 1
_AUTOCLEAR = 4
_PARTITIONS = 8
_TRIES = 64

_CONFIG = struct.Struct("=II52xI176x64x")


@contextmanager
def open_loop(fd: int, *, writable: bool = False) -> Iterator[str]:
    """The path of a loop device that reads the file `fd`; one that is `writable` has partitions.

    The kernel frees the device when the block has ended and no mount uses it any more, also when
    this process is killed. Raises `OSError`.
    """
    flags, mode = _READ_ONLY | _AUTOCLEAR, os.O_RDONLY
    if writable:
        flags, mode = _AUTOCLEAR | _PARTITIONS, os.O_RDWR
    with open("/dev/loop-control", "rb") as control:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            device = os.open(path, mode | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(fd, 0, flags))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it since it was free
                    raise
                continue
            try:
                yield path
            finally:
                os.close(device)
            return
    raise OSError(errno.EBUSY, "no loop device stays free", "/dev/loop-control")
