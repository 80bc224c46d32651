# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a machine needs to try podman in it: an image with podman, and two more disks.

    storage    ext4, label `storage`: a containers-storage (driver overlay) with the image in it,
               for /var/lib/containers/storage
    spare      empty

The storage is filled by the host's podman: unpacking an image takes an emulated machine minutes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from bootc.log import step
from vmtests import cache, podman
from vmtests.axes import Extra
from vmtests.content import Inputs
from vmtests.domain import Disk, DiskFormat
from vmtests.image import BuiltImage
from vmtests.options import BcvkInstallOpts
from vmtests.qcow2 import make_qcow2
from vmtests.tree import make_ext4, tree_size
from vmtests.unshared import call_unshared

KIND = "storages"
_ROOM = 512 << 20
"""Bytes for the containers that a machine runs."""
_SPARE = 3 << 30


def with_podman(opts: BcvkInstallOpts) -> BcvkInstallOpts:
    """The options of the same image with podman in it, under a name of its own.

    An image that is built from `BOOTC_base` is not changed: it has podman, or the tests say so.
    """
    if opts.base or Extra.PODMAN in opts.extras:
        return opts
    name, colon, tag = opts.base_img.rpartition(":")
    if not colon or "/" in tag:
        name, colon, tag = opts.base_img, "", ""
    return replace(opts, extras=(*opts.extras, Extra.PODMAN), base_img=f"{name}-podman{colon}{tag}")


@contextmanager
def podman_disks(image: BuiltImage, where: Path) -> Iterator[tuple[Disk, Disk]]:
    """The two disks, their own files in `where`."""

    def make(folder: Path) -> None:
        with step(f"copy {image.name} as podman's storage onto a disk"):
            call_unshared(write_storage, image.name, str(folder / "storage.ext4"))

    with cache.entry(KIND, Inputs({"image": image.id}), make) as folder:
        storage, spare = where / "storage.qcow2", where / "spare.qcow2"
        for path in (storage, spare):
            path.unlink(missing_ok=True)
        make_qcow2(storage, backing=folder / "storage.ext4", backing_format=DiskFormat.RAW)
        make_qcow2(spare, size=_SPARE)
        yield (
            Disk(path=storage, format=DiskFormat.QCOW2, serial="storage"),
            Disk(path=spare, format=DiskFormat.QCOW2, serial="spare"),
        )


def write_storage(image: str, output: str) -> None:
    """Write the image of this name as a storage on the new disk `output`; see `unshared`."""
    with tempfile.TemporaryDirectory(prefix="storage-", dir=os.path.dirname(output)) as scratch:
        graph, run = Path(scratch) / "graph", Path(scratch) / "run"
        place = f"containers-storage:[overlay@{graph}+{run}]"
        # podman mounts a folder of the new storage on itself, and leaves it so: in its own
        # namespace the mount goes with it.
        argv = ["unshare", "--mount", "podman", "push", "--quiet", image, f"{place}{image}"]
        process.run(argv, env=podman.environment(), timeout=600)
        if not (graph / "overlay-images" / "images.json").is_file():
            raise BootcError(
                f"podman made no storage with driver overlay in {graph}",
                hint="`podman --storage-driver overlay info` tells whether it can use overlayfs",
            )
        make_ext4(graph, Path(output), tree_size(graph) + _ROOM, "storage")
