# SPDX-License-Identifier: Apache-2.0 OR MIT
"""systemd-boot: how it gets onto an ESP."""

from __future__ import annotations

import os

from bootc import process
from bootc.errors import BootcError, ProcessError


def need_bootctl() -> str:
    """The path of bootctl, or the refusal to install without it."""
    return process.need_program(
        "bootctl", hint="install the package that has bootctl (systemd-boot, systemd-udev)"
    )


def bootctl_version() -> int:
    """systemd's major version, 0 when bootctl doesn't tell."""
    words = process.run([need_bootctl(), "--version"], timeout=60).stdout.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def install(root: str, esp: str) -> None:
    """Install systemd-boot from `root`/usr/lib/systemd/boot/efi onto the ESP.

    `esp` is the mounted ESP as seen from inside `root` (`/efi`); variables of the firmware are not
    touched, so the loader also stands at the removable-media path (`EFI/BOOT`).
    """
    argv = [need_bootctl(), "install", "--root", root, "--esp-path", esp, "--no-variables"]
    if bootctl_version() >= 257:
        argv += ["--random-seed", "no"]
    env = {"SYSTEMD_RELAX_ESP_CHECKS": "1", "KERNEL_INSTALL_CONF_ROOT": "/tmp"}
    try:
        process.run(argv, env=env, timeout=300)
    except ProcessError as error:
        raise BootcError(
            "systemd-boot could not be installed",
            hint="the image needs /usr/lib/systemd/boot/efi (package systemd-boot-efi)",
        ) from error
    if not os.path.isdir(f"{root}{esp}/EFI/BOOT"):
        raise BootcError("bootctl succeeded, but left no EFI/BOOT on the ESP")
