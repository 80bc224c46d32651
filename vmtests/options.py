# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The one model of every `BOOTC_*` option of the kit.

A field of `BcvkInstallOpts` is the only declaration of its option. From it derive the parser
(`add_arguments`), the reader (`BcvkInstallOpts.from_env`), the writers (`to_env`, `to_argv`), the
arguments of installer and firmware, the labels of the image, and the docs (`explain`).

A flag beats a variable, a variable beats the default; an empty variable counts as unset. Nothing
is ignored: an unknown name, an unknown value, a combination that breaks a rule of `constraints`,
or one that this release cannot do, is a `BootcError`.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from bootc.errors import BootcError
from vmtests import variables as v
from vmtests.axes import (
    Accel,
    Baseconfig,
    Bootloader,
    BootType,
    Extra,
    Filesystem,
    Firmware,
    Initrd,
    SealState,
    Stage,
    Variant,
)
from vmtests.constraints import (
    AXES,
    NOT_YET,
    Combination,
    Gap,
    Rule,
    Situation,
    broken_rules,
    find_gaps,
    nearest_legal,
)
from vmtests.reading import DEFAULT, Origin, Source, raise_all, read_values

LABEL_PREFIX = "bootc.kit."
MINIMUM_DISK = 2048 * v.MIB
_IN_IMAGE, _ON_DISK, _IN_MACHINE, _IN_RUN = Stage.IMAGE, Stage.DISK, Stage.MACHINE, Stage.RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class BcvkInstallOpts:
    """The resolved options of one run. `sources` says of each where its value comes from."""

    variant: Variant = field(
        default=Variant.COMPOSEFS,
        metadata=v.option(
            v.one_of(Variant),
            variable="BOOTC_variant",
            summary="the backend that keeps the installed system",
            stage=_IN_IMAGE,
        ),
    )
    bootloader: Bootloader = field(
        default=Bootloader.SYSTEMD,
        metadata=v.option(
            v.one_of(Bootloader),
            variable="BOOTC_bootloader",
            summary="what the firmware starts",
            stage=_IN_IMAGE,
        ),
    )
    boot_type: BootType = field(
        default=BootType.BLS,
        metadata=v.option(
            v.one_of(BootType),
            variable="BOOTC_boot_type",
            summary="boot entries with a kernel and an initrd, or unified kernel images",
            stage=_IN_IMAGE,
        ),
    )
    seal_state: SealState = field(
        default=SealState.UNSEALED,
        metadata=v.option(
            v.one_of(SealState),
            variable="BOOTC_seal_state",
            summary="whether the boot chain is signed down to the root's digest",
            stage=_IN_IMAGE,
        ),
    )
    filesystem: Filesystem = field(
        default=Filesystem.EXT4,
        metadata=v.option(
            v.one_of(Filesystem),
            variable="BOOTC_filesystem",
            summary="the root filesystem of the installed disk",
            stage=_ON_DISK,
        ),
    )
    baseconfigs: tuple[Baseconfig, ...] = field(
        default=(),
        metadata=v.option(
            v.some_of(Baseconfig),
            variable="BOOTC_baseconfigs",
            summary="layouts that the image asks of its deployments",
            stage=_IN_IMAGE,
        ),
    )
    base: str = field(
        default="",
        metadata=v.option(
            v.image_reference(),
            variable="BOOTC_base",
            summary="the image to build from; empty: our own Debian base",
            stage=_IN_IMAGE,
        ),
    )
    extras: tuple[Extra, ...] = field(
        default=(),
        metadata=v.option(
            v.some_of(Extra),
            variable="BOOTC_extras",
            summary="packages that our own base has besides: podman, for unified storage",
            stage=_IN_IMAGE,
        ),
    )
    initrd: Initrd = field(
        default=Initrd.TINY,
        metadata=v.option(
            v.one_of(Initrd),
            variable="BOOTC_initrd",
            summary="the small initrd of the tests, or the distribution's shape",
            stage=_IN_IMAGE,
        ),
    )
    mirror: str = field(
        default="http://deb.debian.org/debian",
        metadata=v.option(
            v.url(),
            variable="BOOTC_mirror",
            summary="the Debian mirror that our own base is built from",
            stage=_IN_RUN,
        ),
    )
    nocache: bool = field(
        default=False,
        metadata=v.option(
            v.switch(),
            variable="BOOTC_nocache",
            summary="build the image even if nothing changed",
            stage=_IN_RUN,
        ),
    )
    base_img: str = field(
        default="localhost/bootc",
        metadata=v.option(
            v.image_reference(),
            variable="BOOTC_base_img",
            summary="the image that is built, and that machines start from",
            stage=_IN_RUN,
        ),
    )
    upgrade_image: str = field(
        default="",
        metadata=v.option(
            v.image_reference(),
            variable="BOOTC_upgrade_image",
            summary="the image that the tests upgrade to; empty: none",
            stage=_IN_RUN,
        ),
    )
    kargs: tuple[str, ...] = field(
        default=(),
        metadata=v.option(
            v.kernel_arguments(),
            variable="BOOTC_kargs",
            summary="extra kernel arguments of the installed system",
            stage=_ON_DISK,
            flag="--karg",
        ),
    )
    disk_size: int = field(
        default=4096 * v.MIB,
        metadata=v.option(
            v.size(
                at_least=MINIMUM_DISK,
                because="the EFI system partition takes 1G and the root must hold the image",
            ),
            variable="BOOTC_disk_size",
            summary="the size of the installed disk (sparse)",
            stage=_ON_DISK,
        ),
    )
    memory: int = field(
        default=1024,
        metadata=v.option(
            v.mebibytes(at_least=512),
            variable="BOOTC_memory",
            summary="memory of a machine",
            stage=_IN_MACHINE,
        ),
    )
    vcpus: int = field(
        default=2,
        metadata=v.option(
            v.whole_number(1, 255),
            variable="BOOTC_vcpus",
            summary="processors of a machine",
            stage=_IN_MACHINE,
        ),
    )
    accel: Accel = field(
        default=Accel.AUTO,
        metadata=v.option(
            v.one_of(Accel),
            variable="BOOTC_accel",
            summary="how machines are run; auto: KVM if a probe guest boots with it",
            stage=_IN_MACHINE,
        ),
    )
    libvirt_uri: str = field(
        default="",
        metadata=v.option(
            v.libvirt_uri(),
            variable="BOOTC_libvirt_uri",
            summary="the libvirt to use; empty: an embedded one of the checkout's own",
            stage=_IN_RUN,
        ),
    )
    log_dir: str = field(
        default=".bootc/results",
        metadata=v.option(
            v.path(),
            variable="TMT_LOG_DIR",
            summary="where the results and logs of booted tests go",
            stage=_IN_RUN,
            flag="--log-dir",
        ),
    )
    sources: Mapping[str, Source] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] = os.environ,
        overrides: Mapping[str, str] | None = None,
        *,
        supported: bool = True,
    ) -> BcvkInstallOpts:
        """The options of the environment, with `overrides` (field name to text) on top.

        Raises `BootcError` for everything that is wrong at once; with `supported` also for what
        is legal and this release cannot do.
        """
        reading = read_options(environ, overrides)
        problems = list(reading.problems)
        if not problems:
            problems += reading.options.legal_problems()
        if not problems and supported:
            problems += reading.options.support_problems()
        raise_all(problems)
        return reading.options

    @property
    def combination(self) -> Combination:
        """The five axes of these options."""
        return Combination(**{axis: getattr(self, axis) for axis in AXES})

    @property
    def composefs_backend(self) -> bool:
        """Follows from the variant alone, so that nothing can forget to pass it on."""
        return self.variant is Variant.COMPOSEFS

    @property
    def allow_missing_verity(self) -> bool:
        """Whether the installer must do without fs-verity (C5)."""
        return self.composefs_backend and not self.filesystem.has_verity

    @property
    def firmware(self) -> Firmware:
        """The firmware that a machine with these options needs (C9, C10)."""
        return self.seal_state.firmware

    def source(self, name: str) -> Source:
        """Where the value of the field `name` comes from."""
        return self.sources.get(name, DEFAULT)

    def text(self, name: str) -> str:
        """The value of the field `name` as its variable spells it."""
        return OPTIONS[name].render(getattr(self, name))

    def spelled(self, name: str) -> str:
        """`NAME=value` as the person gave it: the variable, or the flag that set it."""
        source = self.source(name)
        given = source.name if source.origin is Origin.FLAG else OPTIONS[name].variable
        text = self.text(name)
        return f"{given}={shlex.quote(text)}" if text else f"{given} unset"

    def situation(
        self,
        *,
        secure_boot_keys: bool | None = None,
        storage_bound: bool = False,
        libvirt_version: tuple[int, int, int] | None = None,
    ) -> Situation:
        """What the rules judge; the arguments are facts that only a machine's start knows."""
        return Situation(
            combination=self.combination,
            baseconfigs=self.baseconfigs,
            kargs=self.kargs,
            distro=distro_of(self.base),
            extras=self.extras,
            base=self.base,
            composefs_backend=self.composefs_backend,
            bootloader_passed=self.composefs_backend,
            missing_verity_allowed=self.allow_missing_verity,
            firmware=self.firmware,
            secure_boot_keys=secure_boot_keys,
            storage_bound=storage_bound,
            libvirt_version=libvirt_version,
        )

    def legal_problems(self, situation: Situation | None = None) -> list[BootcError]:
        """One error for all the rules that these options break, or none."""
        judged = situation or self.situation()
        broken = broken_rules(judged)
        if not broken:
            return []
        asked = " ".join(self.spelled(name) for name in self._told(judged))
        reasons = "; ".join(f"{rule.name} ({rule.text}): {rule.reason}" for rule in broken)
        return [BootcError(f"{asked}: breaks {reasons}", hint=self._way_out(judged, broken))]

    def support_problems(self) -> list[BootcError]:
        """An error for each legal value that is not supported yet: first those asked for."""
        gaps = find_gaps(self.situation())
        asked = [gap for gap in gaps if self.source(gap.option).explicit]
        return [self._not_yet(gap) for gap in asked or gaps]

    def install_args(self) -> list[str]:
        """The options of `bootc install to-disk` and `to-filesystem` that these options mean."""
        args: list[str] = []
        if self.composefs_backend:
            args += ["--composefs-backend", "--bootloader", str(self.bootloader)]
        args += ["--filesystem", str(self.filesystem)]
        if self.allow_missing_verity:
            args.append("--allow-missing-verity")
        return args + [f"--karg={karg}" for karg in self.kargs]

    def firmware_args(self, keys: str | None = None) -> list[str]:
        """The firmware of a machine; a sealed one needs the directory of the keys (C9)."""
        self.check_machine(secure_boot_keys=keys is not None)
        args = [f"--firmware={self.firmware}"]
        return [*args, f"--secure-boot-keys={keys}"] if keys is not None else args

    def check_machine(
        self,
        *,
        secure_boot_keys: bool | None = None,
        storage_bound: bool = False,
        libvirt_version: tuple[int, int, int] | None = None,
    ) -> None:
        """Refuse to start a machine whose facts break a rule (C8 to C13)."""
        facts = self.situation(
            secure_boot_keys=secure_boot_keys,
            storage_bound=storage_bound,
            libvirt_version=libvirt_version,
        )
        raise_all(self.legal_problems(facts))

    def shaping(self, product: Stage) -> dict[str, str]:
        """Variable to text of every option that changes `product`: what its cache key covers."""
        return {
            one.variable: self.text(name)
            for name, one in OPTIONS.items()
            if one.stage.reaches(product)
        }

    def labels(self) -> dict[str, str]:
        """The labels of an image that is built with these options."""
        names = [name for name, one in OPTIONS.items() if one.stage is Stage.IMAGE]
        if self.boot_type is BootType.UKI:
            names.append("filesystem")  # its command line says whether verity may be missing
        return {LABEL_PREFIX + name: self.text(name) for name in names}

    def check_labels(self, labels: Mapping[str, str]) -> None:
        """Refuse an image (its labels) that was built with other options than these."""
        kept = {name: text for name, text in labels.items() if name.startswith(LABEL_PREFIX)}
        if not kept:
            raise BootcError(
                f"{self.base_img} was not built by this kit: it has no {LABEL_PREFIX}* labels",
                hint=f"build one from it: BOOTC_base={self.base_img} BOOTC_base_img="
                "localhost/bootc ./dev invoke build",
            )
        differences, settings = [], []
        for label, wanted in self.labels().items():
            name = label.removeprefix(LABEL_PREFIX)
            found = kept.get(label)
            if found == wanted:
                continue
            said = "does not say" if found is None else f"has {found or 'none'!r}"
            differences.append(f"{self.spelled(name)}, the image {said}")
            if found is not None:
                settings.append(f"{OPTIONS[name].variable}={shlex.quote(found)}")
        if differences:
            other = f", or take the image as it is: {' '.join(settings)}" if settings else ""
            raise BootcError(
                f"{self.base_img} was built with other options: {'; '.join(differences)}",
                hint=f"build it anew: ./dev invoke build{other}",
            )

    def to_env(self) -> dict[str, str]:
        """The variables that `from_env` reads these options from: those that are not default."""
        plain = BcvkInstallOpts()
        found = {
            one.variable: self.text(name)
            for name, one in OPTIONS.items()
            if getattr(self, name) != getattr(plain, name)
        }
        if self.variant is Variant.OSTREE:  # whose bootloader is grub if unset
            found[OPTIONS["bootloader"].variable] = self.text("bootloader")
        return found

    def to_argv(self) -> list[str]:
        """The flags that `add_arguments` reads these options from."""
        argv: list[str] = []
        for variable, text in self.to_env().items():
            one = BY_VARIABLE[variable]
            if one.shape is v.Shape.REPEATED:
                argv += [f"{one.flag}={word}" for word in shlex.split(text)]
            else:
                argv += [one.flag] if one.shape is v.Shape.SWITCH else [f"{one.flag}={text}"]
        return argv

    def guest_environment(self) -> dict[str, str]:
        """What booted tests are told about the machine that they run in."""
        told = ("variant", "boot_type", "baseconfigs", "upgrade_image")
        return {"BCVK_EXPORT": "1"} | {
            OPTIONS[name].variable: self.text(name) for name in told if self.text(name)
        }

    def _explicit(self) -> frozenset[str]:
        return frozenset(name for name in OPTIONS if self.source(name).explicit)

    def _told(self, situation: Situation) -> list[str]:
        """The fields that an error names: what was asked for, and what the rules look at."""
        nearest = nearest_legal(situation, self._explicit())
        changed = {axis for one in nearest for axis in self.combination.changes_to(one)}
        others = {"baseconfigs", "base", "extras", "kargs"} & self._explicit()
        shown = (set(AXES) & (self._explicit() | changed)) | others
        return [name for name in OPTIONS if name in shown] or list(AXES)

    def _way_out(self, situation: Situation, broken: tuple[Rule, ...]) -> str:
        ways: list[tuple[bool, str]] = []
        for one in nearest_legal(situation, self._explicit())[:3]:
            later = bool(find_gaps(situation.moved_to(one)))
            changes = " ".join(
                f"{OPTIONS[axis].variable}={value}"
                for axis, value in self.combination.changes_to(one).items()
            )
            if changes:
                ways.append((later, f"set {changes}{' (not supported yet)' if later else ''}"))
        ways.sort(key=lambda way: way[0])
        remedies = [rule.remedy for rule in broken if rule.remedy is not None]
        return "; or ".join([*remedies, *(text for _, text in ways)])

    def _not_yet(self, gap: Gap) -> BootcError:
        variable = OPTIONS[gap.option].variable
        action = f"set {variable}={gap.instead}" if gap.instead else f"unset {variable}"
        return BootcError(
            f"{self.spelled(gap.option)}: legal, but not supported yet: {gap.reason}", hint=action
        )


def _declared() -> Iterator[tuple[str, v.Option]]:
    for one in fields(BcvkInstallOpts):
        found = one.metadata.get(v.METADATA_KEY)
        if isinstance(found, v.Option):
            yield one.name, found


OPTIONS: Mapping[str, v.Option] = MappingProxyType(dict(_declared()))
"""Every option by the name of its field, in the order of declaration."""

BY_VARIABLE: Mapping[str, v.Option] = MappingProxyType(
    {one.variable: one for one in OPTIONS.values()}
)


LATER: Mapping[tuple[str, str], str] = {key: instead for key, (_, instead) in NOT_YET.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What could be read (a refused value leaves the default), and everything that was wrong."""

    options: BcvkInstallOpts
    problems: tuple[BootcError, ...]


def read_options(environ: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> Reading:
    """Read names and values; whether they go together is not judged here."""
    found = read_values(OPTIONS, environ, overrides or {}, later=LATER)
    values, sources = dict(found.values), dict(found.sources)
    if values.get("variant") is Variant.OSTREE and "bootloader" not in sources:
        values["bootloader"] = Bootloader.GRUB
        sources["bootloader"] = Source(origin=Origin.FOLLOWS, name="variant=ostree")
    options = BcvkInstallOpts(**values, sources=MappingProxyType(sources))
    return Reading(options=options, problems=found.problems)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every option; `overrides_of` reads them. Values are judged by `from_env`."""
    for name, one in OPTIONS.items():
        text = f"{one.summary} [{one.values}; {one.variable}]".replace("%", "%%")
        if one.shape is v.Shape.SWITCH:
            parser.add_argument(one.flag, dest=name, action="store_const", const="1", help=text)
        elif one.shape is v.Shape.REPEATED:
            parser.add_argument(
                one.flag, dest=name, action="append", metavar=name.upper(), help=text
            )
        else:
            parser.add_argument(one.flag, dest=name, metavar=name.upper(), help=text)


def overrides_of(namespace: argparse.Namespace) -> dict[str, str]:
    """The flags that were given, as the `overrides` of `from_env`."""
    found: dict[str, str] = {}
    for name in OPTIONS:
        given: str | list[str] | None = getattr(namespace, name, None)
        if given is not None:
            found[name] = shlex.join(given) if isinstance(given, list) else given
    return found


def distro_of(reference: str) -> str | None:
    """`centos-9` if the reference of a base image says so; else not known from its name."""
    name, _, tag = reference.lower().rpartition(":")
    if "centos" in name and tag in ("stream9", "c9s", "9"):
        return "centos-9"
    return None
