# SPDX-License-Identifier: Apache-2.0 OR MIT
"""systemd-boot: which boot loader started this machine, and how it gets onto an ESP.

The boot loader interface (systemd.io/BOOT_LOADER_INTERFACE) leaves EFI variables: four bytes of
attributes, then UTF-16-LE text with a NUL at its end.
"""

from __future__ import annotations

import os

from bootc import process
from bootc.errors import BootcError, ProcessError
from bootc.paths import EFI_LOADER_GUID, EFI_VARIABLES
from bootc.spec import Bootloader


def read_loader_variable(name: str, directory: str = EFI_VARIABLES) -> str | None:
    """The text of a variable of the boot loader interface, or None when it isn't there."""
    try:
        with open(f"{directory}/{name}-{EFI_LOADER_GUID}", "rb") as file:
            data = file.read()
    except OSError:
        return None
    return data[4:].decode("utf-16-le", "replace").rstrip("\0")


def detect(directory: str = EFI_VARIABLES) -> Bootloader:
    """The boot loader that started this machine; grub is what leaves no `LoaderInfo` behind."""
    info = (read_loader_variable("LoaderInfo", directory) or "").lower()
    if "systemd-boot" in info:
        return Bootloader.SYSTEMD
    if "grub cc" in info:
        return Bootloader.GRUB_CC
    return Bootloader.GRUB


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
