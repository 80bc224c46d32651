#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the kernel measures is what the store's names promise, for the image and for objects."""

import errno
import fcntl
import os
import struct

import booted

MEASURE = 0xC0046686
"""FS_IOC_MEASURE_VERITY; 1 is SHA-256, 2 is SHA-512 (include/uapi/linux/fsverity.h)."""
HASHES = {32: 1, 64: 2}
SAMPLE = 64
"""Objects that are measured, spread evenly over the store."""


def measure(path: str) -> "tuple[int, str]":
    room = bytearray(struct.pack("=HH", 0, 64) + bytes(64))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, MEASURE, room)
    finally:
        os.close(fd)
    algorithm, size = struct.unpack_from("=HH", room)
    return algorithm, room[4 : 4 + size].hex()


def check_object(path: str, digest: str) -> None:
    try:
        found = measure(path)
    except OSError as error:
        booted.failed(f"{path}: no verity: {error.strerror}")
    if found != (HASHES[len(digest) // 2], digest):
        booted.failed(f"{path}: measured as {found}")


def check() -> None:
    digest, enforced = booted.booted_digest()
    if not enforced:
        print("note composefs=? on the command line: the store may be without verity")
        return
    image = f"{booted.REPOSITORY}/images/{digest}"
    check_object(image, digest)
    print("ok   the image measures as its name")
    objects = f"{booted.REPOSITORY}/objects"
    names = sorted(
        (folder, name)
        for folder in os.listdir(objects)
        for name in os.listdir(f"{objects}/{folder}")
    )
    booted.expect(len(names) > SAMPLE, f"the store has objects: {len(names)}")
    step = len(names) // SAMPLE
    chosen = names[::step]
    for folder, name in chosen:
        check_object(f"{objects}/{folder}/{name}", folder + name)
    print(f"ok   {len(chosen)} objects measure as their names")
    try:
        os.close(os.open(f"{objects}/{chosen[0][0]}/{chosen[0][1]}", os.O_WRONLY))
    except OSError as error:
        booted.expect(
            error.errno in (errno.EPERM, errno.EROFS), f"an object is closed to writers: {error}"
        )
    else:
        booted.failed("an object of the store can be opened for writing")


if __name__ == "__main__":
    booted.main(check)
