# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Soft reboots: the next userspace is assembled at /run/nextroot, and systemd moves over to it.

The root is set up by the program that does it in the initrd, with the deployment's arguments in the
place of the running ones, and with the configuration that its own image has. The kernel goes on
running, so it must be that of the deployment (see soft_reboot_check). A staged deployment is
finalized on the way, by the unit that does so at every shutdown: its /etc is bound to the next root
already, and the merge writes through that.

/run/nextroot must be seen by process 1: the mount is made in its mount namespace.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bootc import process
from bootc.boot import kargs
from bootc.composefs.erofs_image import ErofsImage
from bootc.composefs.repository import Repository
from bootc.deploy import machine, selinux_policy, soft_reboot_check
from bootc.deploy.sysroot import Deployment, Sysroot, read_deployments
from bootc.errors import BootcError
from bootc.initramfs import cmdline, setup_root
from bootc.linux import blockdev, libc, namespaces

NEXT_ROOT = "/run/nextroot"
_CONFIG_MAX = 1 << 20
_SINCE = 254


def why_not(sysroot: Sysroot, deployment: str, *, selinux: bool | None = None) -> str | None:
    """Why this machine cannot go over to `deployment` by a soft reboot; None if it can.

    `selinux`: whether a policy is loaded; asked of the kernel if not said.
    """
    known = {one.id: one for one in read_deployments(sysroot)}
    target = known.get(deployment)
    booted = known[sysroot.need_booted()]
    if target is None:
        return "there is no such deployment"
    if target.id == booted.id:
        return "it is the one that runs"
    if target.origin is None:
        return "its origin is missing or damaged"
    if not soft_reboot_check.has_same_kernel(booted, target):
        return "its kernel, its initrd or its kernel arguments are others than the running ones"
    on = soft_reboot_check.is_selinux_on() if selinux is None else selinux
    if on:
        with Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo:
            policy = selinux_policy.policy_of_root(sysroot.current, repo.algorithm)
            if not selinux_policy.has_same_policy(repo, policy, target.id):
                return "its SELinux policy is another one than the running one"
    return None


def check_systemd() -> None:
    """Raises `BootcError` where systemd has no soft reboot."""
    said = process.run(["systemctl", "--version"], timeout=60).stdout.split()
    version = int(said[1]) if len(said) > 1 and said[1].isdecimal() else 0
    if version < _SINCE:
        raise BootcError(
            f"systemd {version} has no soft reboot, it came with {_SINCE}",
            hint="leave --soft-reboot out: a whole reboot does the same",
        )


def prepare(
    sysroot: Sysroot,
    deployment: str,
    *,
    selinux: bool | None = None,
    next_root: str = NEXT_ROOT,
) -> str:
    """Assemble the root of `deployment` at /run/nextroot; returns a line to be logged.

    What is there is replaced. Raises `BootcError` if the deployment can't follow by a soft reboot,
    or if its root cannot be set up; then nothing is at /run/nextroot.
    """
    reason = why_not(sysroot, deployment, selinux=selinux)
    if reason is not None:
        raise BootcError(
            f"no soft reboot into {deployment[:16]}… is possible: {reason}",
            hint="a whole reboot is: leave --soft-reboot out, or say --soft-reboot=auto",
        )
    target = next(one for one in read_deployments(sysroot) if one.id == deployment)
    machine.arm_finalize(sysroot)
    with _namespace_of_init(sysroot), _config_of(sysroot, deployment) as config:
        reset(next_root)
        os.makedirs(next_root, mode=0o755, exist_ok=True)
        try:
            return setup_root.setup_root(
                _words(target), sysroot=sysroot.root, config_path=config, target=next_root
            )
        except (setup_root.SetupError, OSError) as error:
            said = setup_root.describe(error) if isinstance(error, OSError) else str(error)
            raise BootcError(
                f"the next root cannot be set up: {said}",
                hint="a whole reboot is possible: leave --soft-reboot out",
            ) from error


def reset(next_root: str = NEXT_ROOT) -> bool:
    """Undo `prepare`; whether there was something."""
    done = False
    while blockdev.find_mount(os.path.realpath(next_root)) is not None:
        # Lazily: with all that is mounted below.
        libc.umount2(next_root, libc.MNT_DETACH)
        done = True
    return done


def reset_live() -> bool:
    """`reset` where process 1 sees it."""
    with namespaces.mounts_of_init():
        return reset()


def _words(target: Deployment) -> list[str]:
    """The kernel arguments that the root is set up by: those of the deployment's entry."""
    named = str(kargs.ComposefsArg(digest=target.id, insecure=target.insecure))
    others = kargs.without(target.arguments, ["composefs", "composefs.digest"])
    return cmdline.split(" ".join([*others, named]))


@contextmanager
def _config_of(sysroot: Sysroot, deployment: str) -> Iterator[str]:
    """The path of a copy of the set-up's configuration that the image has; maybe of no file."""
    with (
        tempfile.TemporaryDirectory(prefix="bootc-nextroot-") as folder,
        Repository.open(sysroot.repository, insecure=sysroot.insecure) as repo,
    ):
        image = ErofsImage(repo.read_image(deployment), deployment[:16])
        path = setup_root.CONFIG.lstrip("/")
        data = selinux_policy.read_file(repo, image, path, _CONFIG_MAX)
        copy = f"{folder}/setup-root-conf.toml"
        if data is not None:
            with open(copy, "wb") as file:
                file.write(data)
        yield copy


@contextmanager
def _namespace_of_init(sysroot: Sysroot) -> Iterator[None]:
    """For the running machine, the mount namespace of process 1; a mock stays where it is."""
    if not sysroot.live:
        yield
        return
    with namespaces.mounts_of_init():
        yield
