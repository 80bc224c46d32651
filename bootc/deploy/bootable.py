# SPDX-License-Identifier: Apache-2.0 OR MIT
"""From a pulled image to the one that boots: its tree, its kernel, its id, its /etc on a disk."""

from __future__ import annotations

import os
from contextlib import suppress

from bootc.composefs.assemble import assemble, commit_image, transform_for_boot
from bootc.composefs.repository import Repository
from bootc.composefs.stored import PulledImage, attach_images, image_key
from bootc.deploy import image as images
from bootc.deploy.kernel import Kernel, find_kernel
from bootc.deploy.uki import Uki, need_right_image
from bootc.errors import BootcError
from bootc.records import dataclass
from bootc.tree import Directory, Leaf

OS_RELEASE = ("usr/lib/os-release", "etc/os-release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootable:
    """A bootable image in the repository; `id` is the deployment's. `etc` is a part of `tree`."""

    id: str
    tree: Directory
    etc: Directory
    kernel: Kernel | Uki


def commit_bootable(repo: Repository, pulled: PulledImage) -> Bootable:
    """Write the composefs image that boots, and make it live as long as `pulled` does.

    Raises `BootcError` if there is no kernel, more than one, one that starts another image, or no
    /etc or os-release in it. Nothing is synced.
    """
    tree = assemble(repo, pulled)
    kernel = find_kernel(tree)
    if not any(isinstance(tree.find(path), Leaf) for path in OS_RELEASE):
        raise BootcError(
            "the image has no /usr/lib/os-release, and systemd starts no system without",
            hint="every distribution's base has it: see that the image's build does not remove it",
        )
    transform_for_boot(tree, repo)
    etc = tree.find_directory("etc")
    if etc is None:
        raise BootcError("the image has no /etc")
    image = commit_image(repo, tree)
    if isinstance(kernel, Uki):
        need_right_image(repo, kernel, image.id)
    key = image_key(boot=True, erofs_version=repo.erofs_version)
    attach_images(repo, pulled, {key: bytes.fromhex(image.id)})
    return Bootable(id=image.id, tree=tree, etc=etc, kernel=kernel)


def write_etc(repo: Repository, bootable: Bootable, state_folder: str) -> None:
    """/etc of a new deployment, from the image; systemd is to see that it is new."""
    images.write_tree(repo, bootable.etc, f"{state_folder}/etc")
    with suppress(FileNotFoundError):
        os.unlink(f"{state_folder}/etc/.updated")
