# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A writable /usr until the next reboot: what is written there lies in memory.

The booted image is mounted once more, with an upper layer in a tmpfs, and its `usr` is bound over
/usr. An overlay above the running /usr would be simpler, but that is an overlay over an EROFS image
that is a file already, and the kernel stacks no third file system on it. `--read-only` makes the
mount (not the file system) read-only: for programs that remount it in a namespace of their own.

The mount appears where this process runs; so it must not be in a private mount namespace.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bootc.composefs.mount import ImageMount, mount_image
from bootc.composefs.repository import Repository
from bootc.deploy.sysroot import Sysroot
from bootc.errors import BootcError
from bootc.linux import blockdev, libc, newmount

USR = "/usr"


def has_usr_overlay(target: str = USR) -> bool:
    """Whether something is mounted at /usr."""
    return blockdev.find_mount(target) is not None


def mount_usr_overlay(sysroot: Sysroot, *, read_only: bool = False, target: str = USR) -> bool:
    """Put the overlay over /usr; False when something is mounted there already."""
    if has_usr_overlay(target):
        return False
    booted = sysroot.need_booted()
    with ExitStack() as stack:
        repo = stack.enter_context(Repository.open(sysroot.repository, insecure=sysroot.insecure))
        memory = stack.enter_context(_memory(sysroot.run))
        for name, mode in (("upper", 0o755), ("work", 0o700), ("root", 0o755)):
            os.mkdir(f"{memory}/{name}", mode)
        image: ImageMount = stack.enter_context(
            mount_image(
                repo, booted, upper=f"{memory}/upper", work=f"{memory}/work", read_write=True
            )
        )
        image.attach(f"{memory}/root")
        try:
            usr = newmount.clone(f"{memory}/root/usr")
        except FileNotFoundError as error:
            raise BootcError(f"the image {booted[:16]}… has no /usr") from error
        try:
            if read_only:
                newmount.set_readonly(usr)
            newmount.attach(usr, target)
        finally:
            os.close(usr)
    return True


@contextmanager
def _memory(run: str) -> Iterator[str]:
    """A tmpfs that is attached for as long as the block; overlays keep what they use of it."""
    path = tempfile.mkdtemp(prefix="bootc-usr-overlay-", dir=run)
    try:
        libc.mount("bootc-usr-overlay", path, "tmpfs", libc.MS_NODEV, "mode=0755")
        try:
            libc.mount(None, path, None, libc.MS_PRIVATE)
            yield path
        finally:
            libc.umount2(path, libc.MNT_DETACH)
    finally:
        os.rmdir(path)
