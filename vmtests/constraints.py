# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Every cross-constraint between the options, in one place.

Three questions are kept apart:

* is a combination *legal*: no machine could boot otherwise (`broken_rules`, rules C1 to C13 and
  our own K1 to K3);
* which legal one is *nearest* to what was asked for (`nearest_legal`);
* can *this release* do it (`find_gaps`): legal, but "not yet".

The five axes span 72 raw combinations (`none` is no bootloader a machine could start from, K2, and
is not counted): 14 composefs and 3 ostree ones are legal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product

from vmtests.axes import (
    Baseconfig,
    Bootloader,
    BootType,
    Extra,
    Filesystem,
    Firmware,
    SealState,
    Variant,
)

AXES = ("variant", "bootloader", "boot_type", "seal_state", "filesystem")
READ_ONLY_VIRTIOFS = (11, 0, 0)
"""The first libvirt that can share the host's storage read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One point on the five axes."""

    variant: Variant = Variant.COMPOSEFS
    bootloader: Bootloader = Bootloader.SYSTEMD
    boot_type: BootType = BootType.BLS
    seal_state: SealState = SealState.UNSEALED
    filesystem: Filesystem = Filesystem.EXT4

    def values(self) -> dict[str, str]:
        """Axis to value, in the order of `AXES`."""
        return {axis: str(getattr(self, axis)) for axis in AXES}

    def changes_to(self, other: Combination) -> dict[str, str]:
        """The axes that `other` has differently, with its values."""
        mine = self.values()
        return {axis: value for axis, value in other.values().items() if mine[axis] != value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A combination and what else a rule may look at. `None`: not known yet, so not judged."""

    combination: Combination = Combination()
    baseconfigs: tuple[Baseconfig, ...] = ()
    kargs: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    base: str = ""
    distro: str | None = None
    composefs_backend: bool | None = None
    bootloader_passed: bool | None = None
    missing_verity_allowed: bool | None = None
    firmware: Firmware | None = None
    secure_boot_keys: bool | None = None
    storage_bound: bool = False
    libvirt_version: tuple[int, int, int] | None = None

    def moved_to(self, combination: Combination) -> Situation:
        """The same wishes on another combination; what followed from the old one is not known."""
        return replace(
            self,
            combination=combination,
            composefs_backend=None,
            bootloader_passed=None,
            missing_verity_allowed=None,
            firmware=None,
            secure_boot_keys=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`breaks` says whether a situation breaks it; `remedy` is the way out besides the axes."""

    name: str
    text: str
    reason: str
    breaks: Callable[[Situation], bool]
    remedy: str | None = None


def _sealed(s: Situation) -> bool:
    return s.combination.seal_state is SealState.SEALED


def _uki(s: Situation) -> bool:
    return s.combination.boot_type is BootType.UKI


def _ostree(s: Situation) -> bool:
    return s.combination.variant is Variant.OSTREE


def _loads_by(s: Situation, bootloader: Bootloader) -> bool:
    return s.combination.bootloader is bootloader


def _blind_xfs(s: Situation) -> bool:
    """A UKI on a filesystem without verity that is sealed, or not told to do without."""
    if not _uki(s) or s.combination.filesystem.has_verity:
        return False
    return _sealed(s) or s.missing_verity_allowed is False


def _ostree_means_nothing(s: Situation) -> bool:
    return _ostree(s) and (not _loads_by(s, Bootloader.GRUB) or _uki(s) or _sealed(s))


def _centos9(s: Situation) -> bool:
    return s.distro == "centos-9" and (not _ostree(s) or s.storage_bound or bool(s.baseconfigs))


def _sealed_without_keys(s: Situation) -> bool:
    return _sealed(s) and (s.firmware is Firmware.INSECURE or s.secure_boot_keys is False)


def _unsealed_secure(s: Situation) -> bool:
    return not _sealed(s) and s.firmware is Firmware.SECURE


def _old_libvirt(s: Situation) -> bool:
    version = s.libvirt_version
    return s.storage_bound and version is not None and version < READ_ONLY_VIRTIOFS


def _needs_backend(s: Situation) -> bool:
    asked = s.bootloader_passed or s.missing_verity_allowed
    return bool(asked) and s.composefs_backend is False


def _keys_ignored(s: Situation) -> bool:
    return s.secure_boot_keys is True and s.firmware is Firmware.INSECURE


RULES: tuple[Rule, ...] = (
    Rule(
        name="C1",
        text="sealed ⇒ boot_type=uki",
        reason="only a unified kernel image carries the signed composefs digest",
        breaks=lambda s: _sealed(s) and not _uki(s),
    ),
    Rule(
        name="C2",
        text="sealed ⇒ filesystem is not xfs",
        reason="a sealed root needs fs-verity, which xfs does not have",
        breaks=lambda s: _sealed(s) and not s.combination.filesystem.has_verity,
    ),
    Rule(
        name="C3",
        text="uki ⇒ bootloader=systemd",
        reason="only systemd-boot starts a unified kernel image here",
        breaks=lambda s: _uki(s) and not _loads_by(s, Bootloader.SYSTEMD),
    ),
    Rule(
        name="C4",
        text="sealed ⇒ bootloader=systemd",
        reason="follows from C1 and C3: sealed needs a UKI, and a UKI needs systemd-boot",
        breaks=lambda s: _sealed(s) and not _loads_by(s, Bootloader.SYSTEMD),
    ),
    Rule(
        name="C5",
        text="uki and xfs ⇒ unsealed, with missing verity allowed",
        reason="the digest in a UKI's command line is enforced by fs-verity, which xfs lacks",
        breaks=_blind_xfs,
    ),
    Rule(
        name="C6",
        text="ostree ⇒ grub, bls, unsealed",
        reason="bootloader, boot_type and seal_state mean nothing to the ostree backend",
        breaks=_ostree_means_nothing,
    ),
    Rule(
        name="C7",
        text="baseconfigs ⇒ variant=composefs",
        reason="transient /etc, / and /var are settings of the composefs backend",
        breaks=lambda s: bool(s.baseconfigs) and _ostree(s),
        remedy="unset BOOTC_baseconfigs",
    ),
    Rule(
        name="C8",
        text="CentOS 9 ⇒ ostree only, no host-storage bind, no baseconfigs",
        reason="its kernel and systemd are too old for the composefs backend",
        breaks=_centos9,
        remedy="unset BOOTC_base, or name a newer image",
    ),
    Rule(
        name="C9",
        text="a sealed machine ⇒ uefi-secure firmware and a key directory",
        reason="without enrolled keys the firmware would start anything, and prove nothing",
        breaks=_sealed_without_keys,
        remedy="create the key directory (GUID.txt, PK.crt, KEK.crt, db.crt)",
    ),
    Rule(
        name="C10",
        text="an unsealed machine ⇒ uefi-insecure firmware",
        reason="enforcing firmware refuses a boot loader that our keys did not sign",
        breaks=_unsealed_secure,
    ),
    Rule(
        name="C11",
        text="host-storage bind ⇒ libvirt 11 or newer",
        reason="older ones cannot share a folder read-only",
        breaks=_old_libvirt,
        remedy="install libvirt 11, or do without the host's storage",
    ),
    Rule(
        name="C12",
        text="a bootloader or missing verity to the installer ⇒ --composefs-backend",
        reason="the ostree backend has neither option",
        breaks=_needs_backend,
    ),
    Rule(
        name="C13",
        text="Secure Boot keys ⇒ uefi-secure firmware",
        reason="other firmware never reads them",
        breaks=_keys_ignored,
    ),
    Rule(
        name="K1",
        text="uki ⇒ no extra kernel arguments",
        reason="the command line is part of the unified kernel image",
        breaks=lambda s: _uki(s) and bool(s.kargs),
        remedy="unset BOOTC_kargs",
    ),
    Rule(
        name="K2",
        text="a machine ⇒ a bootloader other than none",
        reason="nothing would start the kernel from the installed disk",
        breaks=lambda s: _loads_by(s, Bootloader.NONE),
    ),
    Rule(
        name="K3",
        text="extras ⇒ our own Debian base",
        reason="they are Debian's packages, and a base that is given stays as it is",
        breaks=lambda s: bool(s.extras) and bool(s.base),
        remedy="unset BOOTC_extras, and name a base that has them",
    ),
)


def broken_rules(situation: Situation) -> tuple[Rule, ...]:
    """The rules that `situation` breaks, in their order; none: it is legal."""
    return tuple(rule for rule in RULES if rule.breaks(situation))


def raw_combinations() -> Iterable[Combination]:
    """All 72 points of the axes, legal or not."""
    bootloaders = [one for one in Bootloader if one is not Bootloader.NONE]
    for variant, bootloader, boot_type, seal_state, filesystem in product(
        Variant, bootloaders, BootType, SealState, Filesystem
    ):
        yield Combination(
            variant=variant,
            bootloader=bootloader,
            boot_type=boot_type,
            seal_state=seal_state,
            filesystem=filesystem,
        )


def legal_combinations(facts: Situation | None = None) -> list[Combination]:
    """The combinations that break no rule, given the other facts of `facts`."""
    known = facts or Situation()
    return [one for one in raw_combinations() if not broken_rules(known.moved_to(one))]


def nearest_legal(situation: Situation, explicit: frozenset[str]) -> list[Combination]:
    """The legal combinations next to an illegal one, nearest first.

    Nearest: fewest changed axes, then fewest of the `explicit` ones that somebody asked for. One
    that changes what a nearer one changes, and more, is left out.
    """
    asked = situation.combination
    found: list[tuple[dict[str, str], Combination]] = []
    for one in sorted(
        legal_combinations(situation),
        key=lambda other: (
            len(asked.changes_to(other)),
            len(explicit & asked.changes_to(other).keys()),
        ),
    ):
        changes = asked.changes_to(one)
        if not any(nearer.items() <= changes.items() for nearer, _ in found):
            found.append((changes, one))
    return [one for _, one in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A legal value that this release cannot do: why, and what to set instead."""

    option: str
    value: str
    reason: str
    instead: str


NOT_YET: dict[tuple[str, str], tuple[str, str]] = {
    ("variant", Variant.OSTREE): ("only the composefs backend exists", Variant.COMPOSEFS),
    ("bootloader", Bootloader.GRUB): ("only systemd-boot can be set up", Bootloader.SYSTEMD),
    ("bootloader", Bootloader.GRUB_CC): ("only systemd-boot can be set up", Bootloader.SYSTEMD),
    ("boot_type", BootType.UKI): ("no unified kernel image is built", BootType.BLS),
    ("seal_state", SealState.SEALED): ("nothing signs the boot chain", SealState.UNSEALED),
}
"""(axis, value) to the reason and the value to set instead.

Whoever implements one deletes its line, and nothing else.
"""


def find_gaps(situation: Situation) -> tuple[Gap, ...]:
    """What of a legal situation this release cannot do."""
    found = [
        Gap(option=axis, value=value, reason=NOT_YET[axis, value][0], instead=instead)
        for axis, value in situation.combination.values().items()
        if (axis, value) in NOT_YET
        for instead in [NOT_YET[axis, value][1]]
    ]
    if situation.baseconfigs:
        found.append(
            Gap(
                option="baseconfigs",
                value=",".join(situation.baseconfigs),
                reason="images have one layout of /etc, / and /var",
                instead="",
            )
        )
    return tuple(found)
