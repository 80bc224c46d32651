# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which boot loader started this machine.

The boot loader interface (systemd.io/BOOT_LOADER_INTERFACE) leaves EFI variables: four bytes of
attributes, then UTF-16-LE text with a NUL at its end.
"""

from __future__ import annotations

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
