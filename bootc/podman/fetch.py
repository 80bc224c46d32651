# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Bring an image into bootc's own container storage.

    registry                         podman's API (`pull`), by a server that lives as long as this
    containers-storage               `podman image push` out of the machine's own storage
    oci, oci-archive, dir, docker-…  `podman pull`: the API serves registries only

Afterwards the image has the name it would have had in the machine's storage, where it comes from
somewhere with names (a registry, a storage); and our claim (`claims`), when it is bootc's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bootc.errors import BootcError
from bootc.log import step
from bootc.oci.reference import ImageReference, Transport
from bootc.podman.auth import read_auth_file
from bootc.podman.claims import claim_name
from bootc.podman.command import Podman, confined, host_podman, need_podman
from bootc.podman.launch import RUNROOT
from bootc.podman.pull import OnLine, PullRequest, Text, pull_error, pull_image
from bootc.podman.service import api_service
from bootc.podman.storage import BootcStorage, StoredImage, normalized

_LONG = 4 * 3600.0
_INIT = 120.0
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An image that is in the storage now; its manifest's digest is known."""

    image: StoredImage
    digest: str


def fetch_image(
    storage: BootcStorage,
    reference: ImageReference,
    on_line: OnLine,
    *,
    request: PullRequest | None = None,
    owned: bool = True,
) -> Fetched:
    """Bring the image into the storage and, if it is `owned` by bootc, claim it.

    `on_line` is told what podman tells.

    `request` is for times other than the usual ones. Raises `BootcError`: then podman has taken
    back what it began.
    """
    match reference.transport:
        case Transport.REGISTRY:
            found = _by_api(storage, reference, on_line, request)
        case Transport.CONTAINERS_STORAGE:
            found = _from_host(storage, reference.image, on_line)
        case _:
            found = _by_command(storage, reference, on_line)
    image = _need_image(storage, found)
    if owned and claim(storage, image):
        image = _need_image(storage, found)
    assert image.digest is not None
    return Fetched(image=image, digest=image.digest)


def _need_image(storage: BootcStorage, name: str) -> StoredImage:
    image = storage.find_image(name)
    if image is None or image.digest is None:
        raise BootcError(
            f"podman pulled {name[:80]}, but it is not in {storage.path}",
            hint="does another podman clean it up at the same time? try again",
        )
    return image


def claim(storage: BootcStorage, image: StoredImage) -> bool:
    """Make it bootc's to remove; whether it was not so before."""
    if image.digest is None or claim_name(image.digest) in image.names:
        return False
    storage.tag(image.id, claim_name(image.digest))
    return True


def _by_api(
    storage: BootcStorage,
    reference: ImageReference,
    on_line: OnLine,
    request: PullRequest | None,
) -> str:
    if request is None:
        # Without the transport a name of one word would be looked for at several registries.
        request = PullRequest(reference=reference.imgref)
    if request.credentials is None and storage.authfile is not None:
        request = replace(request, credentials=read_auth_file(storage.authfile))
    with storage.podman() as podman, api_service(podman, storage.run) as socket_path:
        return pull_image(socket_path, request, on_line)


def _by_command(storage: BootcStorage, reference: ImageReference, on_line: OnLine) -> str:
    what = f"podman: pull of {reference}"
    with storage.podman() as podman:
        done = podman.run("pull", reference.imgref, timeout=_LONG, check=False)
    if done.status != 0:
        raise pull_error(what, _last_line(done.stderr))
    for line in done.stderr.splitlines():
        if line.strip():
            on_line(Text(text=line.strip()))
    image = done.stdout.strip().rpartition("\n")[2]
    if not _ID.fullmatch(image):
        raise BootcError(f"{what}: podman named no image, but {image[:80]!r}")
    return image


def _from_host(storage: BootcStorage, name: str, on_line: OnLine) -> str:
    """Copy out of the machine's storage; returns the name that it has then."""
    what = f"podman: copy of {name} from this machine's container storage"
    with host_podman(authfile=storage.authfile) as host:
        # The first podman on a machine decides about its network, and notes that in its storage.
        host.run("system", "info", timeout=_INIT)
        if host.run("image", "exists", name, timeout=_INIT, check=False).status != 0:
            raise BootcError(
                f"{what}: there is no such image", hint="`podman images` lists those that are"
            )
        given = name
        if _ID.fullmatch(name) or name.startswith("["):
            given = f"localhost/bootc-copied:{name.strip('[]')[:12]}"
    target = normalized(given)
    place = f"[overlay@{storage.alias}+/proc/self/fd/{RUNROOT}]"
    with (
        step(f"copy {name} into bootc's container storage"),
        confined(
            storage.path, storage.runroot, alias=storage.alias, authfile=storage.authfile
        ) as made,
    ):
        podman = Podman(argv=(*made.argv, need_podman()), env=made.env, fds=made.fds)
        words = ["image", "push", "--remove-signatures", name]
        done = podman.run(*words, f"containers-storage:{place}{target}", timeout=_LONG, check=False)
    if done.status != 0:
        raise pull_error(what, _last_line(done.stderr))
    for line in done.stderr.splitlines():
        if line.strip():
            on_line(Text(text=line.strip()))
    return target


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "podman gave no reason"
