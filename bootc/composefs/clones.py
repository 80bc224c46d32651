# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Objects that share the extents of a file which exists already (reflink).

A clone is nobody else's, so what is read from it is what is stored. But on most file systems it has
pages of its own, and each has to come from the disk, while those of the original are likely to be
in memory. So the original is read instead, where that proves the same: only root and we may write
to it, and a lease, taken before the clone was made, still holds when all was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from bootc.composefs.objects import ObjectStore, Route
from bootc.composefs.writers import Item
from bootc.linux import filelease
from bootc.tree import Leaf


def clone_file(
    store: ObjectStore, leaf: Leaf, source: int, size: int, read: Callable[[int], bytes]
) -> Item | None:
    """The content of the regular file `source` on its way into the store, or None if its extents
    can't be shared; then nothing was read.

    `read(fd)` reads and checks `size` bytes from the start of `fd`, and returns them, or nothing if
    they are too many to keep. It may be called a second time, for what counts then; it raises if
    the content is shorter. What it makes of a longer one is the caller's: see `os.fstat(item.fd)`.
    """
    if not store.may_clone(source):
        return None
    leased = filelease.is_own(source) and filelease.take(source)
    fd = store.clone(source)
    if fd is None:
        if leased:
            filelease.release(source)
        return None
    twin = -1
    try:
        data = read(source if leased else fd)
        if leased and not filelease.holds(source):
            leased = False
            data = read(fd)
        if store.measures:
            data = b""  # the kernel reads it itself
        elif leased and not data:
            twin = os.dup(source)
    except BaseException:
        store.discard(fd)
        raise
    return Item(leaf, size, data, fd=fd, twin=twin, route=Route.REFLINKED)
