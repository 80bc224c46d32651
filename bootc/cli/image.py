# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`bootc image …`: bootc's container storage, and what goes into it and out of it.

`list` prints a table, or a JSON array of `{"image", "image_type": host|unified|logical}`. `cmd` is
podman itself, in that storage; `cmd pull` goes by podman's API. As in `commands`, imports wait.
"""

from __future__ import annotations

import logging

from bootc.cli import lifecycle, render
from bootc.cli.parser import Namespace
from bootc.errors import BootcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.podman.pull import PullLine

_log = logging.getLogger(__name__)
_HEADERS = ("REPOSITORY", "TYPE")


def list_images(arguments: Namespace) -> None:
    from bootc.deploy.image_list import ListedImage, Which, list_container, list_system
    from bootc.deploy.sysroot import is_container, open_booted
    from bootc.jsonutil import canonical

    which = Which(arguments.type)
    found: list[ListedImage]
    if is_container():
        if which is Which.HOST:
            raise BootcError(
                "a container has no images of the host", hint="bootc image list --type logical"
            )
        found = list_container(which)
    else:
        with open_booted(writable=False) as sysroot:
            found = list_system(sysroot, which)
    if arguments.format == "json":
        render.say(canonical([one.to_json() for one in found]))
        return
    rows = [_HEADERS, *((one.image, one.type.value) for one in found)]
    width = max(len(row[0]) for row in rows)
    for name, kind in rows:
        render.say(f"{name.ljust(width)}  {kind}")


def copy_to_storage(arguments: Namespace) -> None:
    from bootc.deploy.copy_out import copy_to_storage as copy
    from bootc.deploy.sysroot import open_booted

    with open_booted(writable=False) as sysroot:
        render.say(copy(sysroot, source=arguments.source, target=arguments.target))


def set_unified(arguments: Namespace) -> None:
    from bootc.deploy.set_unified import set_unified as unify

    with lifecycle.observed(arguments) as observer, lifecycle.opened() as sysroot:
        done = unify(sysroot, allow_copy=arguments.allow_copy, observer=observer)
    render.say(done.text)


def pull_from_default_storage(arguments: Namespace) -> None:
    _fetch("containers-storage", [arguments.image])


def pull(arguments: Namespace) -> None:
    _fetch("registry", arguments.images)


def _fetch(transport: str, images: list[str]) -> None:
    """Bring images into the storage; they are the user's, so they get no claim of ours."""
    from bootc.deploy.unified import make_unified_storage
    from bootc.oci.reference import parse_imgref
    from bootc.podman.fetch import fetch_image

    with lifecycle.opened() as sysroot:
        storage = make_unified_storage(sysroot.root, sysroot.run)
        for name in images:
            reference = parse_imgref(f"{transport}:{name}")
            render.say(fetch_image(storage, reference, _tell, owned=False).image.id)


def _tell(line: PullLine) -> None:
    text = getattr(line, "text", None)
    if text is not None:
        _log.info("  %s", text)


def command(arguments: Namespace) -> None:
    from bootc.deploy.unified import make_unified_storage

    with lifecycle.opened() as sysroot:
        storage = make_unified_storage(sysroot.root, sysroot.run)
        with storage.podman() as podman:
            status = podman.pass_through("image", arguments.command, *arguments.words)
    if status != 0:
        raise BootcError(
            f"podman image {arguments.command} ended with status {status}",
            hint="its own message is above",
        )
