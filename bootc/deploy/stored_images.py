# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which images of bootc's container storage go with the deployments that they were pulled for.

An image is bootc's when it has a claim (`podman.claims`), a name with its manifest's digest. What
came into the storage otherwise, as images that are bound to the system and those that somebody
pulled there, has none and is never touched. An image that a deployment has, and that another
bootc brought here without a claim, gets one.

A claimed image goes, with all of its names, when no deployment has a digest that it claims, and
none follows one of its names. The claims are taken away last, so that what was interrupted goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from bootc.deploy import messages
from bootc.deploy.state import Origin
from bootc.log import step
from bootc.podman.claims import claim_name, claims, stored_name
from bootc.podman.storage import BootcStorage, StoredImage
from bootc.records import dataclass

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoragePlan:
    """`claimed`: (image id, new name). `removed`: of each image, its names in the order in which
    they are taken away. `unclaimed`: claims that images which stay have for nothing any more."""

    claimed: tuple[tuple[str, str], ...] = ()
    removed: tuple[tuple[str, ...], ...] = ()
    unclaimed: tuple[str, ...] = ()

    @property
    def removes(self) -> bool:
        return bool(self.removed or self.unclaimed)

    def describe(self) -> list[str]:
        """A line for each image that goes."""
        return [f"Stored image: {names[0]}" for names in self.removed]


NO_IMAGES = StoragePlan()


def plan_storage(images: Iterable[StoredImage], live: Iterable[Origin]) -> StoragePlan:
    """What is to be done, when the deployments that stay have these origins."""
    kept = list(live)
    digests = {origin.manifest_digest for origin in kept}
    followed = {stored_name(origin.image) for origin in kept}
    claimed: list[tuple[str, str]] = []
    removed: list[tuple[str, ...]] = []
    unclaimed: list[str] = []
    for image in images:
        own = claims(image)
        if image.digest in digests and image.digest not in own.values():
            claimed.append((image.id, claim_name(str(image.digest))))
        dead = [name for name, digest in own.items() if digest not in digests]
        others = [name for name in image.names if name not in own]
        stays = len(dead) < len(own) or image.digest in digests or followed & set(others)
        if not own:
            continue
        if not stays:
            removed.append((*others, *dead))
        else:
            unclaimed += dead
    return StoragePlan(claimed=tuple(claimed), removed=tuple(removed), unclaimed=tuple(unclaimed))


def apply_storage(plan: StoragePlan, storage: BootcStorage) -> None:
    """Do it, by podman. Raises `BootcError`."""
    for image, name in plan.claimed:
        storage.tag(image, name)
    if not plan.removes:
        return
    with step(f"remove {len(plan.removed)} images from bootc's container storage"):
        for names in plan.removed:
            storage.remove_names(names)
            _log.info(
                "removed %s from bootc's container storage",
                names[0],
                extra={"MESSAGE_ID": messages.REMOVED},
            )
        storage.remove_names(plan.unclaimed)
