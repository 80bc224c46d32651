# SPDX-License-Identifier: Apache-2.0 OR MIT
"""`install to-disk` and `to-filesystem`: find the image, plan, then apply the plan.

Without `--source-imgref` the image is the one that this container was started from. That takes a
privileged podman container that shares the host's process ids; the host's container storage and its
devices are got by these (see `host_mounts`).
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from bootc.deploy.image import ImageFacts, read_facts
from bootc.deploy.progress import Observer, Observers, ProgressLog
from bootc.deploy.source import open_image
from bootc.deploy.sysroot import one_at_a_time
from bootc.errors import BootcError, advised
from bootc.install.config import InstallConfig, load_config
from bootc.install.host_mounts import share_host_mounts
from bootc.install.options import DiskOptions, FilesystemOptions, InstallOptions
from bootc.install.plan import InstallPlan, plan_to_disk, plan_to_filesystem
from bootc.install.run import Installed, apply_install
from bootc.install.scan import is_cheap_to_scan, need_kernel
from bootc.linux.loop import open_loop
from bootc.log import step
from bootc.oci.layout import ImageSource, open_source
from bootc.oci.reference import ImageReference, Transport, parse_imgref

_log = logging.getLogger(__name__)
CONTAINER_ENV = "/run/.containerenv"

Planner = Callable[[InstallConfig, ImageFacts], InstallPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was planned, and what is there now (None: it was to be planned only)."""

    plan: InstallPlan
    installed: Installed | None

    @property
    def text(self) -> str:
        """For people."""
        done = self.installed
        if done is None:
            return self.plan.describe().rstrip("\n")
        return f"Installed: {done.image} {done.digest} (deployment {done.deployment})"


def install_to_disk(
    options: InstallOptions,
    disk: DiskOptions,
    *,
    observer: Observer | None = None,
    wait: bool = True,
) -> Result:
    """Install onto a disk, or only plan that (`options.dry_run`).

    Raises `BusyError` if another bootc changes this machine's disks and `wait` is off.
    """

    def make_plan(config: InstallConfig, image: ImageFacts) -> InstallPlan:
        device = stack.enter_context(_loop_device(disk.device)) if disk.via_loopback else None
        return plan_to_disk(options, replace(disk, device=device or disk.device), config, image)

    with ExitStack() as stack:
        return _install(options, make_plan, observer, wait=wait)


@contextmanager
def _loop_device(path: str) -> Iterator[str]:
    """A loop device of the file, as long as the block; the kernel takes it back if we are killed.

    It is opened late: an installer in a container has the host's /dev only then.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise BootcError(
            f"{path} cannot be used as a disk: {error.strerror}",
            hint=f"make the file first: truncate -s 10G {path}",
        ) from error
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BootcError(f"{path} is not a file", hint="leave out --via-loopback for a disk")
        try:
            device = stack.enter_context(open_loop(fd, writable=True))
        except OSError as error:
            raise BootcError(
                f"there is no loop device for {path}: {error.strerror}", hint="modprobe loop"
            ) from error
        _log.info("%s is %s", path, device)
        yield device


def install_to_filesystem(
    options: InstallOptions,
    target: FilesystemOptions,
    *,
    observer: Observer | None = None,
    wait: bool = True,
) -> Result:
    """Install into a mounted file system; see `install_to_disk`."""

    def make_plan(config: InstallConfig, image: ImageFacts) -> InstallPlan:
        return plan_to_filesystem(options, target, config, image)

    return _install(options, make_plan, observer, wait=wait)


def _install(
    options: InstallOptions, make_plan: Planner, observer: Observer | None, *, wait: bool
) -> Result:
    reference, shown = find_source(options)
    if options.source_imgref is None:
        share_host_mounts()
    with ExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(one_at_a_time(wait=wait))
        source = stack.enter_context(opened_source(reference, options))
        facts = read_facts(shown, source.manifest_digest, source.manifest, source.config)
        plan = replace(make_plan(load_config(), facts), fetch_from=reference)
        if not facts.is_labelled_bootable or is_cheap_to_scan(reference, source):
            with step("look for a kernel in the image"):
                need_kernel(source)
        if options.run_fetch_check:
            check_fetch(plan.target_image)
        if options.dry_run:
            return Result(plan=plan, installed=None)
        _log.info("Installing image: %s", plan.image.reference)
        _log.info("Digest: %s", plan.image.digest)
        _log.info("Bootloader: %s", plan.bootloader)
        told = Observers([ProgressLog(), *([observer] if observer else [])])
        return Result(plan=plan, installed=apply_install(plan, source, observer=told))


def check_fetch(target: ImageReference) -> None:
    """Raise `BootcError` unless the image that updates will come from can be read from here."""
    with (
        step(f"look whether {target} can be read"),
        advised(
            "updates could not be read",
            "is it there, and may this machine read it? Or leave out --run-fetch-check",
        ),
        open_image(target),
    ):
        pass


@contextmanager
def opened_source(reference: ImageReference, options: InstallOptions) -> Iterator[ImageSource]:
    """The image to install, as long as the block. Raises `BootcError`."""
    with ExitStack() as stack:
        try:
            source = stack.enter_context(open_source(reference.imgref))
        except BootcError as error:
            if options.source_imgref is not None:
                raise
            raise BootcError(
                "the image of this container cannot be read",
                hint="add `-v /var/lib/containers:/var/lib/containers` to `podman run`, "
                "or name a source by --source-imgref",
            ) from error
        yield source


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
    if not values:
        raise BootcError(f"{path} is empty: the container is not privileged", hint=hint)
    if not values.get("engine", "").startswith("podman"):
        raise BootcError(f"the container engine is {values.get('engine')!r}, not podman", hint=hint)
    if values.get("rootless") == "1":
        raise BootcError("this container is rootless", hint="run podman as root")
    if not values.get("imageid"):
        raise BootcError(f"{path} names no image", hint=hint)
    if os.stat("/proc/1").st_uid != 0:
        raise BootcError("process 1 is not root's: a user namespace", hint="run podman as root")
    return values["imageid"], values.get("image", "")
