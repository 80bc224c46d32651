# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What an installer in a container needs of the host, whether or not the container was given it.

    /dev                  new partitions have nodes only in the host's own
    /var/lib/containers   where the image is that the container runs
    /var/tmp              room for an image, which the layer of a container may not have
    /run/udev             udev says when it has done with a disk

`podman run --privileged --pid=host` shows the host's processes, so the mount namespace of process 1
can be entered: there each folder is cloned, and here attached. Where that is not allowed, the
container has what it was given by `-v PATH:PATH`. Source: open_tree(2), setns(2).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack

from bootc.errors import BootcError
from bootc.linux import libc, mount, namespaces

SHARED = ("/dev", "/var/lib/containers", "/var/tmp", "/run/udev")
_log = logging.getLogger(__name__)


def share_host_mounts(paths: Sequence[str] = SHARED) -> None:
    """Give this process a mount namespace in which these folders are the host's.

    What the host does not have is left as it is. No other process sees any of it. Call it in a
    process that has done nothing with threads yet. Raises `BootcError`.
    """
    if os.getpid() == 1:
        raise BootcError("this is process 1 of its container", hint="add --pid=host")
    try:
        same = namespaces.shared_with_init()
    except PermissionError:
        _log.info("process 1 cannot be looked at: the folders of the host are those given by -v")
        return
    if same:
        raise BootcError("process 1 is this container's own, not the host's", hint="add --pid=host")
    mount.isolate_mounts()
    here = {path: _identity(path) for path in paths}
    with ExitStack() as stack:
        found = []
        try:
            with namespaces.mounts_of_init():
                for path in paths:
                    there = _identity(path)
                    if there is not None and there != here[path]:
                        clone = mount.clone(path, recursive=True)
                        stack.callback(os.close, clone)
                        found.append((path, clone))
            for path, clone in found:
                os.makedirs(path, exist_ok=True)
                mount.attach(clone, path)
                libc.mount(None, path, None, mount.MS_REC | mount.MS_PRIVATE)
        except OSError as error:
            raise BootcError(
                f"{error.filename or 'the mounts'} of the host cannot be shared: {error.strerror}",
                hint="add `--privileged`, and `-v PATH:PATH` for each of "
                + ", ".join(path for path in paths),
            ) from error


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
