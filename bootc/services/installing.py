# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The operations of `containers.bootc.install`, as the worker carries them out.

Each takes the task and the parameters that were given, and returns those of its last reply.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from bootc.deploy.progress import INSTALLING
from bootc.install.options import (
    DEFAULT_ESP_SIZE,
    MIB,
    MIN_ESP_SIZE,
    BlockSetup,
    DiskOptions,
    FilesystemOptions,
    InstallOptions,
    Replace,
    RootFilesystem,
)
from bootc.install.verbs import Result, install_to_disk, install_to_filesystem
from bootc.linux import blockdev
from bootc.oci.reference import Transport, parse_imgref
from bootc.services.failures import NotRootError, OptionError, blaming
from bootc.services.task import Answer, Given, Task
from bootc.spec import Bootloader

INTERFACE = "containers.bootc.install"
E = TypeVar("E", bound=StrEnum)

NOT_YET: dict[str, Callable[[object], bool]] = {
    "options.disableSelinux": bool,
    "options.boundImages": lambda value: value == "pull",
    "options.stateroot": lambda value: value != "default",
    "options.ukiAddon": bool,
    "bootMountSpec": bool,
}
"""What the command line has and this release does not do, and which values of it are meant."""


def to_disk(task: Task, given: Given) -> Answer:
    _refuse_unwritten(given)
    options = _options(given)
    disk = DiskOptions(
        device=_path(given, "device"),
        via_loopback=bool(given.get("viaLoopback")),
        wipe=bool(given.get("wipe")),
        block_setup=_choice(BlockSetup, given, "blockSetup"),
        filesystem=_choice(RootFilesystem, given, "filesystem"),
        root_size=_size(given, "rootSize", None, 1),
        esp_size=_size(given, "espSize", DEFAULT_ESP_SIZE, MIN_ESP_SIZE) or DEFAULT_ESP_SIZE,
    )
    _need_root()
    if not disk.via_loopback:
        with blaming("device"):
            blockdev.need_block_device(disk.device)
    with task.observed(INSTALLING) as observer:
        return _answer(install_to_disk(options, disk, observer=observer, wait=False))


def to_filesystem(task: Task, given: Given) -> Answer:
    _refuse_unwritten(given)
    options = _options(given)
    target = FilesystemOptions(
        root=_path(given, "rootPath"),
        root_mount_spec=given.get("rootMountSpec"),
        boot_mount_spec=given.get("bootMountSpec"),
        replace=_choice(Replace, given, "replace"),
        skip_finalize=bool(given.get("skipFinalize")),
        acknowledge_destructive=bool(given.get("acknowledgeDestructive")),
    )
    _need_root()
    if not os.path.ismount(target.root):
        raise OptionError(
            "rootPath",
            f"{target.root} is not the mount point of a file system",
            hint="mount the new root file system there first",
        )
    with task.observed(INSTALLING) as observer:
        return _answer(install_to_filesystem(options, target, observer=observer, wait=False))


OPERATIONS: dict[str, Callable[[Task, Given], Answer]] = {
    "ToDisk": to_disk,
    "ToFilesystem": to_filesystem,
}


def _need_root() -> None:
    if os.geteuid() != 0:
        raise NotRootError


def _refuse_unwritten(given: Given) -> None:
    """Options that bootc has and this release does not honour are refused, never ignored."""
    options = given.get("options", {})
    for name, is_meant in NOT_YET.items():
        table, _, key = name.rpartition(".")
        value = (options if table else given).get(key)
        if value is not None and is_meant(value):
            raise OptionError(name, "this cannot be done yet", hint="leave it out")


def _options(given: Given) -> InstallOptions:
    options = {key: one for key, one in given.get("options", {}).items() if one is not None}
    source, target = options.get("sourceImgref"), options.get("targetImgref")
    transport = options.get("targetTransport")
    if source is not None:
        with blaming("options.sourceImgref"):
            parse_imgref(source)
    if transport is not None:
        if target is None:
            raise OptionError("options.targetTransport", "it needs targetImgref")
        known = [item.value for item in Transport]
        if transport not in known:
            raise OptionError("options.targetTransport", f"it is none of {', '.join(known)}")
    if target is not None:
        with blaming("options.targetImgref"):
            parse_imgref(f"{transport or Transport.REGISTRY.value}:{target}")
    if options.get("allowCopy") and not options.get("experimentalUnifiedStorage"):
        raise OptionError("options.allowCopy", "it needs experimentalUnifiedStorage")
    return InstallOptions(
        source_imgref=source,
        target_imgref=target,
        target_transport=transport,
        allow_missing_verity=bool(options.get("allowMissingVerity")),
        bootloader=_choice(Bootloader, options, "bootloader", "options."),
        kargs=tuple(options.get("karg", ())),
        karg_deletes=tuple(options.get("kargDelete", ())),
        root_ssh_authorized_keys=options.get("rootSshAuthorizedKeys"),
        generic_image=bool(options.get("genericImage")),
        enforce_sigpolicy=bool(options.get("enforceContainerSigpolicy")),
        run_fetch_check=bool(options.get("runFetchCheck")),
        dry_run=bool(options.get("dryRun")),
        unified_storage=bool(options.get("experimentalUnifiedStorage")),
        allow_copy=bool(options.get("allowCopy")),
    )


def _choice(kind: type[E], given: Given, name: str, prefix: str = "") -> E | None:
    value = given.get(name)
    if value is None:
        return None
    known = [item.value for item in kind]
    if value not in known:
        raise OptionError(f"{prefix}{name}", f"{value!r} is none of {', '.join(known)}")
    return kind(value)


def _path(given: Given, name: str) -> str:
    """The service has no working directory that its clients know."""
    path: str = given[name]
    if not path.startswith("/") or "\0" in path:
        raise OptionError(name, f"{path!r} is no absolute path")
    return path


def _size(given: Given, name: str, default: int | None, least: int) -> int | None:
    size: int | None = given.get(name, default)
    if size is not None and (size < least or size % MIB):
        floor = f", {least // MIB} or more" if least >= MIB else ""
        raise OptionError(name, f"{size} bytes are no whole number of MiB{floor}")
    return size


def _answer(result: Result) -> Answer:
    done = result.installed
    if done is None:
        return {"plan": result.text}
    return {
        "installed": {
            "image": done.image,
            "imageDigest": done.digest,
            "verity": done.deployment,
        }
    }
