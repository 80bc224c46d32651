# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The closed sets of the options, spelled as the `BOOTC_*` variables spell them."""

from __future__ import annotations

from enum import StrEnum


class Variant(StrEnum):
    """Which store holds the installed system. Composefs implies `--composefs-backend`."""

    COMPOSEFS = "composefs"
    OSTREE = "ostree"


class Bootloader(StrEnum):
    """What the firmware starts. `none` is the installer's word for "somebody else's"."""

    SYSTEMD = "systemd"
    GRUB = "grub"
    GRUB_CC = "grub-cc"
    NONE = "none"


class BootType(StrEnum):
    """Kernel and initrd as two files with a text entry, or as one signed EFI program."""

    BLS = "bls"
    UKI = "uki"


class SealState(StrEnum):
    """Whether the boot chain is signed down to the composefs digest."""

    UNSEALED = "unsealed"
    SEALED = "sealed"

    @property
    def firmware(self) -> Firmware:
        """The firmware that a machine of this state needs (C9, C10)."""
        return Firmware.SECURE if self is SealState.SEALED else Firmware.INSECURE


class Filesystem(StrEnum):
    """The root filesystem of the installed disk."""

    EXT4 = "ext4"
    BTRFS = "btrfs"
    XFS = "xfs"

    @property
    def has_verity(self) -> bool:
        """Whether the kernel implements fs-verity on it."""
        return self is not Filesystem.XFS


class Initrd(StrEnum):
    """The small initrd of the tests, or the shape that a distribution ships."""

    TINY = "tiny"
    DRACUT = "dracut"


class Accel(StrEnum):
    """`auto`: KVM if a probe guest really boots with it, else TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Baseconfig(StrEnum):
    """Layouts that an image may ask of its deployments."""

    ETC_TRANSIENT = "etc-transient"
    ROOT_TRANSIENT = "root-transient"
    VAR_VOLATILE = "var-volatile"


class Extra(StrEnum):
    """Packages that our own base has besides: a folder of packaging/extras each."""

    PODMAN = "podman"


class Firmware(StrEnum):
    """What runs before the boot loader; `secure` enforces the keys of a directory of ours."""

    INSECURE = "uefi-insecure"
    SECURE = "uefi-secure"


class Stage(StrEnum):
    """The first product that an option changes; the products after it change with it."""

    IMAGE = "image"
    DISK = "disk"
    MACHINE = "machine"
    RUN = "run"

    def reaches(self, product: Stage) -> bool:
        """Whether an option of this stage changes `product`."""
        order = list(Stage)
        return order.index(self) <= order.index(product)
