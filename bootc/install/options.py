# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the user asked an install for, as frozen records; nothing here looks at the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from bootc.errors import BootcError
from bootc.spec import Bootloader

MIB = 1024 * 1024
DEFAULT_ESP_SIZE = 1024 * MIB
MIN_ESP_SIZE = 64 * MIB


class RootFilesystem(StrEnum):
    EXT4 = "ext4"
    BTRFS = "btrfs"
    XFS = "xfs"

    @property
    def has_verity(self) -> bool:
        """Whether files on it can have fs-verity."""
        return self is not RootFilesystem.XFS

    @property
    def has_reflinks(self) -> bool:
        """Whether files on it can share extents."""
        return self is not RootFilesystem.EXT4


class BlockSetup(StrEnum):
    DIRECT = "direct"
    TPM2_LUKS = "tpm2-luks"


class Replace(StrEnum):
    WIPE = "wipe"
    ALONGSIDE = "alongside"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """The options that all kinds of install share. References are in `transport:image` form."""

    source_imgref: str | None = None
    target_imgref: str | None = None
    target_transport: str | None = None
    composefs_backend: bool = True
    allow_missing_verity: bool = False
    bootloader: Bootloader | None = None
    kargs: tuple[str, ...] = ()
    karg_deletes: tuple[str, ...] = ()
    root_ssh_authorized_keys: str | None = None
    generic_image: bool = False
    disable_selinux: bool = False
    enforce_sigpolicy: bool = False
    run_fetch_check: bool = False
    dry_run: bool = False
    unified_storage: bool = False
    allow_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOptions:
    """`install to-disk`; sizes are in bytes. With `via_loopback` the `device` is a file."""

    device: str
    via_loopback: bool = False
    wipe: bool = False
    block_setup: BlockSetup | None = None
    filesystem: RootFilesystem | None = None
    root_size: int | None = None
    esp_size: int = DEFAULT_ESP_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemOptions:
    """`install to-filesystem`; an empty mount spec leaves the argument out."""

    root: str
    root_mount_spec: str | None = None
    boot_mount_spec: str | None = None
    replace: Replace | None = None
    skip_finalize: bool = False
    acknowledge_destructive: bool = False


def parse_size(text: str) -> int:
    """Bytes of `N`, `NM`, `NG` or `NT` (without a letter: MiB)."""
    match = re.fullmatch(r"(\d+)\s*(?:([MGT])(?:iB|B)?)?", text.strip())
    if match is None or int(match[1]) == 0:
        raise BootcError(f"{text!r} is not a size", hint="write it like 512M, 20G or 1T")
    return int(match[1]) * MIB * {"M": 1, "G": 1024, "T": 1024 * 1024}[match[2] or "M"]
