# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The fs-verity descriptor of a file. Source: include/uapi/linux/fsverity.h, Linux 5.12.

FS_IOC_READ_VERITY_METADATA 0xc0286687: u64 what (2: the descriptor), u64 offset, u64 length, u64
address, u64 0; returns how many bytes it wrote to the address.

The descriptor is specified in `composefs.digest`: its hash is the file's digest. Not in `fsverity`,
because the initrd has that and needs none of this.
"""

import errno
import fcntl
import struct
from array import array

from bootc.linux import fsverity

SIZE = 256
_READ_METADATA = 0xC0286687
_DESCRIPTOR = 2


def read_descriptor(fd: int) -> bytes | None:
    """The descriptor of the file `fd`; None when it has none, or the kernel can't tell.

    None but the kernel can write into our memory: so a file system in user space has none, though
    it may say any digest.
    """
    room = array("B", bytes(SIZE))
    address, _ = room.buffer_info()
    asked = bytearray(struct.pack("=QQQQQ", _DESCRIPTOR, 0, SIZE, address, 0))
    try:
        done = fcntl.ioctl(fd, _READ_METADATA, asked)
    except OSError as error:
        if fsverity.is_unsupported(error) or error.errno == errno.ENODATA:
            return None
        raise
    return room.tobytes() if done == SIZE else None
