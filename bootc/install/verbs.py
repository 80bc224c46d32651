# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`install to-disk` and `to-filesystem`: find the image, plan, then apply the plan.

Without `--source-imgref` the image is the one that this container was started from. That takes a
privileged podman container that shares the host's process ids, with the host's container storage.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable

from bootc import process
from bootc.composefs.progress import Event, OnProgress, Progress
from bootc.deploy.image import ImageFacts, read_facts
from bootc.errors import BootcError
from bootc.install.config import InstallConfig, load_config
from bootc.install.options import DiskOptions, FilesystemOptions, InstallOptions
from bootc.install.plan import InstallPlan, plan_to_disk, plan_to_filesystem
from bootc.install.run import apply_install
from bootc.install.scan import is_cheap_to_scan, need_kernel
from bootc.log import show_size, step
from bootc.oci.layout import ImageSource, open_source
from bootc.oci.reference import ImageReference, Transport, parse_imgref

_log = logging.getLogger(__name__)
CONTAINER_ENV = "/run/.containerenv"
_PROGRESS_EVERY = 5.0

Planner = Callable[[InstallConfig, ImageFacts], InstallPlan]


def install_to_disk(options: InstallOptions, disk: DiskOptions) -> str:
    """Install onto a disk; the sentence that says what is there now (or the plan: `dry_run`)."""
    return _install(options, lambda config, image: plan_to_disk(options, disk, config, image))


def install_to_filesystem(options: InstallOptions, target: FilesystemOptions) -> str:
    """Install into a mounted file system; see `install_to_disk`."""
    return _install(
        options, lambda config, image: plan_to_filesystem(options, target, config, image)
    )


def _install(options: InstallOptions, make_plan: Planner) -> str:
    reference, shown = find_source(options)
    with open_source(reference.imgref) as source:
        facts = read_facts(shown, source.manifest_digest, source.manifest, source.config)
        plan = make_plan(load_config(), facts)
        if not facts.is_labelled_bootable or is_cheap_to_scan(reference, source):
            with step("look for a kernel in the image"):
                need_kernel(source)
        if options.dry_run:
            return plan.describe().rstrip("\n")
        return _apply(plan, source)


def _apply(plan: InstallPlan, source: ImageSource) -> str:
    _log.info("Installing image: %s", plan.image.reference)
    _log.info("Digest: %s", plan.image.digest)
    _log.info("Bootloader: %s", plan.bootloader)
    done = apply_install(plan, source, on_progress=progress_reporter(plan.image.download_size))
    return f"Installed: {done.image} {done.digest} (deployment {done.deployment})"


def progress_reporter(total: int) -> OnProgress:
    """Says every few seconds how many of the `total` bytes of the layers are read."""
    last = time.monotonic()
    fetched: dict[str, int] = {}

    def report(event: Event) -> None:
        nonlocal last
        if not isinstance(event, Progress):
            return
        fetched[event.id] = event.fetched
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY:
            last = now
            done = sum(fetched.values())
            _log.info("  %d %%, %s", 100 * done // max(total, 1), show_size(done))

    return report


def find_source(options: InstallOptions) -> tuple[ImageReference, ImageReference]:
    """(where to read the image, what to call it)."""
    if options.source_imgref is not None:
        found = parse_imgref(options.source_imgref)
        return found, found
    image_id, name = read_container(CONTAINER_ENV)
    stored = ImageReference(image=image_id, transport=Transport.CONTAINERS_STORAGE)
    return stored, ImageReference(image=name or image_id, transport=Transport.REGISTRY)


def read_container(path: str) -> tuple[str, str]:
    """(image id, image name) of the podman container that we run in, by its `.containerenv`."""
    hint = "run the image with `podman run --privileged --pid=host`, or pass --source-imgref"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise BootcError("this is not a container, so there is no image", hint=hint) from error
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values[key] = str(json.loads(value)) if value.startswith('"') else value
    if not values.get("engine", "").startswith("podman"):
        raise BootcError(f"the container engine is {values.get('engine')!r}, not podman", hint=hint)
    if values.get("rootless") == "1":
        raise BootcError("this container is rootless", hint="run podman as root")
    if not values.get("imageid"):
        raise BootcError(f"{path} names no image", hint=hint)
    if os.getpid() == 1:
        raise BootcError("this is process 1 of its container", hint="add --pid=host")
    if os.stat("/proc/1").st_uid != 0:
        raise BootcError("process 1 is not root's: a user namespace", hint="run podman as root")
    process.need_program("skopeo", hint="install skopeo in the image: it reads the image storage")
    return values["imageid"], values.get("image", "")
