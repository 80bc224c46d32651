# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc image list`: the images of deployments, and those that bootc's container storage holds.

`host` is the image of a deployment, `unified` one that is in the storage as well, `logical` any
other image of the storage. Nothing is run for it: the storage's list is a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from bootc.deploy.stage import live_deployments
from bootc.deploy.state import Origin
from bootc.deploy.sysroot import Sysroot
from bootc.deploy.unified import find_stored, find_unified_storage
from bootc.jsonutil import Json
from bootc.podman.claims import claims
from bootc.podman.storage import BootcStorage, StoredImage

IN_IMAGE = "/usr/lib/bootc/storage"
"""Where a container of a bootc image sees the storage, if it does."""


class ImageType(StrEnum):
    HOST = "host"
    UNIFIED = "unified"
    LOGICAL = "logical"


class Which(StrEnum):
    """The choices of `--type`; unified images are images of the host."""

    ALL = "all"
    LOGICAL = "logical"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    image: str
    type: ImageType

    def to_json(self) -> dict[str, Json]:
        return {"image": self.image, "image_type": self.type.value}


def list_system(sysroot: Sysroot, which: Which) -> list[ListedImage]:
    """The images of a system. Raises `BootcError` when its storage is damaged."""
    storage = find_unified_storage(sysroot)
    stored = storage.images() if storage is not None else ()
    origins = [one.origin for one in live_deployments(sysroot)]
    return list_images([one for one in origins if one is not None], stored, which)


def list_container(which: Which) -> list[ListedImage]:
    """The images that a container of a bootc image sees."""
    return list_images([], BootcStorage(path=IN_IMAGE).images(), which)


def list_images(
    origins: Iterable[Origin], stored: Iterable[StoredImage], which: Which
) -> list[ListedImage]:
    """Each name once: those of deployments in their order, then the others."""
    images = list(stored)
    hosts: dict[str, ImageType] = {}
    shown: set[str] = set()
    for origin in origins:
        found = find_stored(images, origin.image, origin.manifest_digest)
        if found is not None:
            shown.add(found.id)
        name = str(origin.image)
        if hosts.get(name) is not ImageType.UNIFIED:
            hosts[name] = ImageType.HOST if found is None else ImageType.UNIFIED
    listed: list[ListedImage] = []
    if which is not Which.LOGICAL:
        listed += [ListedImage(image=name, type=kind) for name, kind in hosts.items()]
    if which is not Which.HOST:
        for image in images:
            if image.id not in shown:
                own = claims(image)
                names = [name for name in image.names if name not in own] or [image.id]
                listed += [ListedImage(image=name, type=ImageType.LOGICAL) for name in names]
    return listed
