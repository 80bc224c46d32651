# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Each verb's function. What a verb needs is imported when it runs: start-up time is felt."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bootc import log
from bootc.cli import render
from bootc.errors import BootcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bootc.cli.parser import Namespace
    from bootc.deploy.progress import Observer
    from bootc.install.options import InstallOptions


def run(arguments: Namespace) -> None:
    """Run the verb."""
    log.setup()
    if getattr(arguments, "not_yet", False):
        name = arguments.verb.replace(".", " ")
        raise BootcError(
            f"`bootc {name}` is not yet in this release",
            hint="`bootc --help` lists what there is",
        )
    COMMANDS[arguments.verb](arguments)


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise BootcError(f"{what} needs root", hint="run it with sudo")


def status(arguments: Namespace) -> None:
    if arguments.format_version not in (None, 0, 1):
        raise BootcError(
            f"there is no format version {arguments.format_version}", hint="--format-version 1"
        )
    kind = "json" if arguments.json else arguments.format
    if kind is None:
        kind = "humanreadable" if sys.stdout.isatty() else "yaml"
    from bootc.status import read_host, read_host_at

    if arguments.sysroot is not None:
        host = read_host_at(arguments.sysroot)
    else:
        host = read_host(booted_only=arguments.booted)
    match kind:
        case "json":
            render.say_exactly(render.host_json(host))
        case "yaml":
            render.say_exactly(render.host_yaml(host))
        case _:
            text = render.host_human(host, verbose=arguments.verbose, utf8=render.is_utf8())
            render.say_exactly(text)


def install_to_disk(arguments: Namespace) -> None:
    from bootc.install.options import DEFAULT_ESP_SIZE, BlockSetup, DiskOptions, RootFilesystem
    from bootc.install.options import parse_size as size
    from bootc.install.verbs import install_to_disk as install

    setup, kind = arguments.block_setup, arguments.filesystem
    disk = DiskOptions(
        device=arguments.device,
        via_loopback=arguments.via_loopback,
        wipe=arguments.wipe,
        block_setup=BlockSetup(setup) if setup else None,
        filesystem=RootFilesystem(kind) if kind else None,
        root_size=size(arguments.root_size) if arguments.root_size else None,
        esp_size=size(arguments.esp_size) if arguments.esp_size else DEFAULT_ESP_SIZE,
    )
    need_root("install")
    with _install_observed(arguments) as observer:
        render.say(install(_install_options(arguments), disk, observer=observer).text)


def install_to_filesystem(arguments: Namespace) -> None:
    from bootc.install.options import FilesystemOptions, Replace
    from bootc.install.verbs import install_to_filesystem as install

    if arguments.boot_mount_spec:
        raise BootcError("--boot-mount-spec cannot be done yet", hint="use one file system")
    target = FilesystemOptions(
        root=arguments.root_path,
        root_mount_spec=arguments.root_mount_spec,
        boot_mount_spec=arguments.boot_mount_spec,
        replace=Replace(arguments.replace) if arguments.replace else None,
        skip_finalize=arguments.skip_finalize,
        acknowledge_destructive=arguments.acknowledge_destructive,
    )
    need_root("install")
    with _install_observed(arguments) as observer:
        render.say(install(_install_options(arguments), target, observer=observer).text)


@contextmanager
def _install_observed(arguments: Namespace) -> Iterator[Observer | None]:
    """Who is told of an install beside people: the reader of `--progress-fd`."""
    if arguments.progress_fd is None:
        yield None
        return
    from bootc.deploy.progress import INSTALLING, ProgressWriter, adopt_pipe

    with ProgressWriter(adopt_pipe(arguments.progress_fd), steps=INSTALLING) as writer:
        yield writer


def _install_options(arguments: Namespace) -> InstallOptions:
    from bootc.install.options import InstallOptions
    from bootc.spec import Bootloader

    _refuse_unwritten(arguments)
    keys = arguments.root_ssh_authorized_keys
    return InstallOptions(
        source_imgref=arguments.source_imgref,
        target_imgref=arguments.target_imgref,
        target_transport=arguments.target_transport,
        composefs_backend=arguments.composefs_backend,
        allow_missing_verity=arguments.allow_missing_verity,
        bootloader=Bootloader(arguments.bootloader) if arguments.bootloader else None,
        kargs=tuple(arguments.karg),
        karg_deletes=tuple(arguments.karg_delete),
        root_ssh_authorized_keys=_read_text(keys) if keys else None,
        generic_image=arguments.generic_image,
        disable_selinux=arguments.disable_selinux,
        enforce_sigpolicy=arguments.enforce_container_sigpolicy,
        run_fetch_check=arguments.run_fetch_check,
        dry_run=arguments.dry_run,
        unified_storage=arguments.experimental_unified_storage,
        allow_copy=arguments.allow_copy,
    )


def _refuse_unwritten(arguments: Namespace) -> None:
    """Options that bootc has and this release does not honour are refused, never ignored."""
    given = {
        "--disable-selinux": arguments.disable_selinux,
        "--bound-images pull": arguments.bound_images == "pull",
        "--stateroot": arguments.stateroot not in (None, "default"),
        "--uki-addon": bool(arguments.uki_addon),
    }
    for name, wanted in given.items():
        if wanted:
            raise BootcError(f"{name} cannot be done yet", hint="leave it out")


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def print_configuration(arguments: Namespace) -> None:
    from bootc.install.config import load_config
    from bootc.jsonutil import canonical

    render.say(canonical(load_config().to_json(everything=arguments.all)))


def build_id(arguments: Namespace) -> None:
    from bootc.cli.build_id import build_id as compute

    render.say(compute())


def fsverity_measure(arguments: Namespace) -> None:
    from bootc.linux import fsverity

    fd = os.open(arguments.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = fsverity.measure(fd)
    finally:
        os.close(fd)
    if found is None:
        raise BootcError(
            f"{arguments.path} has no fs-verity",
            hint=f"bootc internals fsverity enable {arguments.path}",
        )
    render.say(found[1].hex())


def fsverity_enable(arguments: Namespace) -> None:
    from bootc.linux import fsverity

    fd = os.open(arguments.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fsverity.enable(fd, fsverity.SHA256)
    except OSError as error:
        raise BootcError(f"{arguments.path}: {error.strerror}") from error
    finally:
        os.close(fd)


def _later(module: str, name: str) -> Callable[[Namespace], None]:
    """A verb's function in a module that is imported when the verb runs."""

    def run_it(arguments: Namespace) -> None:
        from importlib import import_module

        getattr(import_module(f"bootc.cli.{module}"), name)(arguments)

    LATER.append((module, name))
    return run_it


LATER: list[tuple[str, str]] = []
"""(module, function) of the verbs that are in modules of their own."""


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "status": status,
    "upgrade": _later("lifecycle", "upgrade"),
    "switch": _later("lifecycle", "switch"),
    "rollback": _later("lifecycle", "rollback"),
    "edit": _later("lifecycle", "edit"),
    "delete-deployment": _later("lifecycle", "delete_deployment"),
    "composefs-finalize-staged": _later("lifecycle", "finalize_staged"),
    "usr-overlay": _later("upkeep", "usr_overlay"),
    "config-diff": _later("upkeep", "config_diff"),
    "image.list": _later("image", "list_images"),
    "image.copy-to-storage": _later("image", "copy_to_storage"),
    "image.set-unified": _later("image", "set_unified"),
    "image.pull-from-default-storage": _later("image", "pull_from_default_storage"),
    "image.cmd": _later("image", "command"),
    "image.cmd.pull": _later("image", "pull"),
    "install.to-disk": install_to_disk,
    "install.to-filesystem": install_to_filesystem,
    "install.print-configuration": print_configuration,
    "internals.build-id": build_id,
    "internals.reboot": _later("lifecycle", "reboot"),
    "internals.dir-diff": _later("upkeep", "dir_diff"),
    "internals.composefs-gc": _later("upkeep", "composefs_gc"),
    "internals.prep-soft-reboot": _later("upkeep", "prep_soft_reboot"),
    "internals.print-json-schema": _later("upkeep", "print_json_schema"),
    "internals.fsck": _later("upkeep", "fsck"),
    "internals.fsverity.measure": fsverity_measure,
    "internals.fsverity.enable": fsverity_enable,
}
