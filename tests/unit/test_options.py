# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The options: every combination is judged, every rule has a case, everything derived agrees."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootc.errors import BootcError
from vmtests import explain
from vmtests.axes import (
    Baseconfig,
    Bootloader,
    BootType,
    Extra,
    Filesystem,
    Firmware,
    SealState,
    Stage,
    Variant,
)
from vmtests.constraints import (
    RULES,
    Combination,
    Situation,
    broken_rules,
    find_gaps,
    legal_combinations,
    nearest_legal,
    raw_combinations,
)
from vmtests.options import (
    OPTIONS,
    BcvkInstallOpts,
    add_arguments,
    overrides_of,
    read_options,
)
from vmtests.reading import Origin
from vmtests.variables import FOREIGN, REFUSED, show_size

ROOT = Path(__file__).resolve().parents[2]
PLAIN = BcvkInstallOpts()

GRUB = Combination(bootloader=Bootloader.GRUB)
NONE = Combination(bootloader=Bootloader.NONE)
XFS = Combination(filesystem=Filesystem.XFS)
UKI = Combination(boot_type=BootType.UKI)
UKI_GRUB = replace(UKI, bootloader=Bootloader.GRUB)
UKI_XFS = replace(UKI, filesystem=Filesystem.XFS)
SEALED = replace(UKI, seal_state=SealState.SEALED)
OSTREE = Combination(variant=Variant.OSTREE, bootloader=Bootloader.GRUB)


def refusal(environ: dict[str, str], overrides: dict[str, str] | None = None) -> tuple[str, str]:
    """The message and the hint that `environ` is refused with."""
    with pytest.raises(BootcError) as caught:
        BcvkInstallOpts.from_env(environ, overrides)
    return caught.value.message, caught.value.hint or ""


def rule_names(situation: Situation) -> set[str]:
    return {rule.name for rule in broken_rules(situation)}


def test_every_combination_is_judged_and_the_counts_are_known() -> None:
    raw = list(raw_combinations())
    legal = legal_combinations()
    assert len(raw) == len(set(raw)) == 72
    assert sum(one.variant is Variant.COMPOSEFS for one in legal) == 14
    assert sum(one.variant is Variant.OSTREE for one in legal) == 3
    for one in raw:
        expected = (
            one.bootloader is Bootloader.GRUB
            and one.boot_type is BootType.BLS
            and one.seal_state is SealState.UNSEALED
            if one.variant is Variant.OSTREE
            else (one.boot_type is BootType.BLS and one.seal_state is SealState.UNSEALED)
            or (
                one.boot_type is BootType.UKI
                and one.bootloader is Bootloader.SYSTEMD
                and (one.seal_state is SealState.UNSEALED or one.filesystem is not Filesystem.XFS)
            )
        )
        assert (one in legal) is expected, one


@pytest.mark.parametrize("one", list(raw_combinations()))
def test_the_environment_is_judged_like_the_rules(one: Combination) -> None:
    environ = {OPTIONS[axis].variable: value for axis, value in one.values().items()}
    if one in legal_combinations():
        opts = BcvkInstallOpts.from_env(environ, supported=False)
        assert opts.combination == one
        gaps = find_gaps(Situation(combination=one))
        if gaps:
            message, hint = refusal(environ)
            assert "not supported yet" in message
            assert all(f"={gap.instead}" in hint for gap in gaps)
    else:
        message, hint = refusal(environ)
        broken = broken_rules(Situation(combination=one))
        assert all(f"{rule.name} (" in message and rule.reason in message for rule in broken)
        assert hint.startswith("set BOOTC_")


def test_a_machine_without_a_bootloader_is_never_legal() -> None:
    for one in raw_combinations():
        assert broken_rules(Situation(combination=replace(one, bootloader=Bootloader.NONE)))


RULE_CASES: dict[str, tuple[Situation, Situation]] = {
    "C1": (
        Situation(combination=replace(SEALED, boot_type=BootType.BLS)),
        Situation(combination=SEALED),
    ),
    "C2": (
        Situation(combination=replace(SEALED, filesystem=Filesystem.XFS)),
        Situation(combination=replace(SEALED, filesystem=Filesystem.BTRFS)),
    ),
    "C3": (Situation(combination=UKI_GRUB), Situation(combination=UKI)),
    "C4": (
        Situation(combination=replace(SEALED, bootloader=Bootloader.GRUB)),
        Situation(combination=SEALED),
    ),
    "C5": (
        Situation(combination=UKI_XFS, missing_verity_allowed=False),
        Situation(combination=UKI_XFS, missing_verity_allowed=True),
    ),
    "C6": (
        Situation(combination=replace(OSTREE, bootloader=Bootloader.SYSTEMD)),
        Situation(combination=OSTREE),
    ),
    "C7": (
        Situation(combination=OSTREE, baseconfigs=(Baseconfig.ETC_TRANSIENT,)),
        Situation(baseconfigs=(Baseconfig.ETC_TRANSIENT,)),
    ),
    "C8": (Situation(distro="centos-9"), Situation(combination=OSTREE, distro="centos-9")),
    "C9": (
        Situation(combination=SEALED, firmware=Firmware.SECURE, secure_boot_keys=False),
        Situation(combination=SEALED, firmware=Firmware.SECURE, secure_boot_keys=True),
    ),
    "C10": (Situation(firmware=Firmware.SECURE), Situation(firmware=Firmware.INSECURE)),
    "C11": (
        Situation(storage_bound=True, libvirt_version=(10, 9, 9)),
        Situation(storage_bound=True, libvirt_version=(11, 0, 0)),
    ),
    "C12": (
        Situation(bootloader_passed=True, composefs_backend=False),
        Situation(bootloader_passed=True, composefs_backend=True),
    ),
    "C13": (
        Situation(firmware=Firmware.INSECURE, secure_boot_keys=True),
        Situation(combination=SEALED, firmware=Firmware.SECURE, secure_boot_keys=True),
    ),
    "K1": (Situation(combination=UKI, kargs=("quiet",)), Situation(kargs=("quiet",))),
    "K2": (Situation(combination=NONE), Situation(combination=GRUB)),
    "K3": (
        Situation(extras=(Extra.PODMAN,), base="quay.io/x/y"),
        Situation(extras=(Extra.PODMAN,)),
    ),
}


@pytest.mark.parametrize("name", list(RULE_CASES))
def test_every_rule_refuses_and_lets_through(name: str) -> None:
    bad, good = RULE_CASES[name]
    assert name in rule_names(bad)
    assert rule_names(good) == set()


def test_no_rule_is_without_a_case() -> None:
    assert set(RULE_CASES) == {rule.name for rule in RULES}
    assert len(RULES) == len(RULE_CASES)


@pytest.mark.parametrize(
    "bad",
    [
        Situation(combination=OSTREE, distro="centos-9", storage_bound=True),
        Situation(combination=OSTREE, distro="centos-9", baseconfigs=(Baseconfig.VAR_VOLATILE,)),
    ],
)
def test_centos_9_has_neither_a_storage_bind_nor_baseconfigs(bad: Situation) -> None:
    assert "C8" in rule_names(bad)


def test_facts_that_are_not_known_are_not_judged() -> None:
    assert rule_names(Situation(combination=SEALED)) == set()
    assert rule_names(Situation(storage_bound=True)) == set()


def test_the_nearest_changes_least_and_rather_what_nobody_asked_for() -> None:
    sealed = Combination(seal_state=SealState.SEALED)
    asked = frozenset({"seal_state"})
    found = [sealed.changes_to(one) for one in nearest_legal(Situation(combination=sealed), asked)]
    assert found == [{"boot_type": "uki"}, {"seal_state": "unsealed"}]
    both = replace(SEALED, filesystem=Filesystem.XFS)
    near = nearest_legal(Situation(combination=both), frozenset(both.values()))
    assert [both.changes_to(one) for one in near] == [
        {"seal_state": "unsealed"},
        {"filesystem": "ext4"},
        {"filesystem": "btrfs"},
    ]


def test_the_nearest_of_a_legal_one_is_itself() -> None:
    for one in legal_combinations():
        assert nearest_legal(Situation(combination=one), frozenset())[0] == one


@pytest.mark.parametrize(
    ("environ", "message", "hint"),
    [
        (
            {"BOOTC_bootloader": "gurb"},
            "BOOTC_bootloader=gurb: 'gurb' is none of systemd, grub, grub-cc, none",
            "did you mean grub? That is not supported yet: set BOOTC_bootloader=systemd",
        ),
        (
            {"BOOTC_filesystem": "EXT4"},
            "'EXT4' is none of ext4, btrfs, xfs",
            "did you mean ext4? set BOOTC_filesystem=ext4",
        ),
        (
            {"BOOTC_filesystem": "zfs-on-root"},
            "is none of",
            "set BOOTC_filesystem to ext4 or btrfs or xfs",
        ),
        (
            {"BOOTC_seal_state": "sealed", "BOOTC_filesystem": "xfs"},
            "C2 (sealed ⇒ filesystem is not xfs): a sealed root needs fs-verity",
            "set BOOTC_seal_state=unsealed; or set BOOTC_boot_type=uki BOOTC_filesystem=ext4",
        ),
        ({"BOOTC_disk_size": "100 MB"}, "too small: at least 2G, because the EFI", "2G or more"),
        ({"BOOTC_disk_size": "100"}, "is not a size", "2G or more"),
        ({"BOOTC_memory": "64"}, "MiB, 512 or more", "or unset it"),
        ({"BOOTC_vcpus": "two"}, "BOOTC_vcpus=two: is not a whole number", "1 to 255"),
        ({"BOOTC_vcpus": "0"}, "is not between 1 and 255", "1 to 255"),
        ({"BOOTC_kargs": "a 'b"}, "cannot be split into words", "quoted as in a shell"),
        ({"BOOTC_kargs": "quiet -- 1"}, "behind which the kernel reads nothing", "or unset it"),
        ({"BOOTC_kargs": "composefs=ab"}, "the installer sets it", "or unset it"),
        ({"BOOTC_kargs": "a ''"}, "no kernel command line can hold", "or unset it"),
        ({"BOOTC_base": "-v /:/host"}, "is not an image reference", "unset it"),
        ({"BOOTC_libvirt_uri": "qemu+ssh://far/system"}, "names the host far", "libvirt URI"),
        ({"BOOTC_libvirt_uri": "xen:///system"}, "is not a QEMU connection", "libvirt URI"),
        ({"BOOTC_mirror": "deb.debian.org"}, "is not an address", "a URL"),
        ({"BOOTC_nocache": "maybe"}, "is none of", "set BOOTC_nocache to 1 or"),
        ({"BOOTC_baseconfigs": "etc-transiemt"}, "is none of", "did you mean etc-transient?"),
        ({"BOOTC_fliesystem": "ext4"}, "unknown variable", "did you mean BOOTC_filesystem?"),
        ({"BOOTC_VARIANT": "ostree"}, "unknown variable", "did you mean BOOTC_variant?"),
        ({"BOOTC_xyzzy": ""}, "BOOTC_xyzzy: unknown variable", "unset BOOTC_xyzzy"),
        ({"BOOTC_BASE_IMAGE": "x"}, "BOOTC_BASE_IMAGE=x: is another name", "BOOTC_base_img"),
        ({"BOOTC_SKIP_PACKAGE": "1"}, "not supported yet", "unset BOOTC_SKIP_PACKAGE"),
        (
            {"BOOTC_variant": "ostree"},
            "BOOTC_variant=ostree: legal, but not supported yet",
            "set BOOTC_variant=composefs",
        ),
        (
            {"BOOTC_variant": "ostree", "BOOTC_bootloader": "systemd"},
            "C6",
            "set BOOTC_variant=composefs; or",
        ),
        (
            {"BOOTC_baseconfigs": "etc-transient"},
            "legal, but not supported yet",
            "unset BOOTC_baseconfigs",
        ),
        (
            {"BOOTC_baseconfigs": "etc-transient", "BOOTC_variant": "ostree"},
            "C7",
            "unset BOOTC_baseconfigs",
        ),
        ({"BOOTC_bootloader": "none"}, "K2", "set BOOTC_bootloader=systemd"),
        ({"BOOTC_boot_type": "uki", "BOOTC_kargs": "quiet"}, "K1", "unset BOOTC_kargs"),
        ({"BOOTC_extras": "podman", "BOOTC_base": "x/y"}, "K3", "unset BOOTC_extras"),
        ({"BOOTC_extras": "podmam"}, "is none of", "did you mean podman?"),
        (
            {"BOOTC_base": "quay.io/centos-bootc/centos-bootc:stream9"},
            "C8",
            "unset BOOTC_base, or name a newer image",
        ),
    ],
)
def test_a_refusal_names_the_variable_the_rule_and_the_way_out(
    environ: dict[str, str], message: str, hint: str
) -> None:
    said, advised = refusal(environ)
    assert message in said
    assert hint in advised
    assert any(name in said for name in environ)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    said, advised = refusal({"BOOTC_vcpus": "0", "BOOTC_accel": "hvf", "BOOTC_foo": "1"})
    for name in ("BOOTC_vcpus=0", "BOOTC_accel=hvf", "BOOTC_foo"):
        assert name in said
    assert "auto or kvm or tcg" in advised


def test_variables_of_others_are_let_through() -> None:
    environ = dict.fromkeys([*FOREIGN, "BCVK_EXPORT", "PATH"], "on")
    assert BcvkInstallOpts.from_env(environ) == PLAIN


def test_empty_variables_are_unset() -> None:
    environ = dict.fromkeys([one.variable for one in OPTIONS.values()] + list(REFUSED), "")
    opts = BcvkInstallOpts.from_env(environ)
    assert opts == PLAIN
    assert opts.source("variant").origin is Origin.DEFAULT


def test_each_value_knows_its_source() -> None:
    opts = BcvkInstallOpts.from_env(
        {"BOOTC_filesystem": "xfs", "BOOTC_memory": "2G"}, {"filesystem": "btrfs"}
    )
    assert opts.filesystem is Filesystem.BTRFS
    assert opts.memory == 2048
    assert str(opts.source("filesystem")) == "flag --filesystem"
    assert str(opts.source("memory")) == "environment BOOTC_memory"
    assert str(opts.source("vcpus")) == "default"


def test_an_error_names_the_flag_that_was_given() -> None:
    said, advised = refusal({"BOOTC_accel": "tcg"}, {"accel": "kwm"})
    assert said.startswith("--accel=kwm: ")
    assert "--accel=kvm" in advised
    said, _ = refusal({}, {"boot_type": "uki"})
    assert said.startswith("--boot-type=uki: legal, but not supported yet")
    said, advised = refusal({}, {"bootlaoder": "grub"})
    assert "no option 'bootlaoder'" in said
    assert advised == "did you mean bootloader?"


def test_the_bootloader_follows_the_ostree_variant() -> None:
    opts = BcvkInstallOpts.from_env({"BOOTC_variant": "ostree"}, supported=False)
    assert opts.bootloader is Bootloader.GRUB
    assert str(opts.source("bootloader")) == "follows variant=ostree"


def some_options() -> Iterator[BcvkInstallOpts]:
    for one in legal_combinations():
        yield read_options(
            {OPTIONS[axis].variable: value for axis, value in one.values().items()}
        ).options
    yield replace(PLAIN, kargs=("a=b c", "-x", "console=ttyS0", "it's"), nocache=True)
    yield replace(PLAIN, disk_size=2560 << 20, memory=1536, vcpus=1, log_dir="/var/tmp/a b")
    yield replace(PLAIN, baseconfigs=tuple(Baseconfig), base="quay.io/x/y:1@sha256:ab")
    yield replace(PLAIN, extras=tuple(Extra), base_img="localhost/other")
    yield replace(PLAIN, libvirt_uri="qemu:///session", mirror="file:///srv/debian")


@pytest.mark.parametrize("opts", list(some_options()))
def test_options_survive_the_environment_and_the_flags(opts: BcvkInstallOpts) -> None:
    assert read_options(opts.to_env()).options == opts
    assert read_options(opts.to_env()).problems == ()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = overrides_of(parser.parse_args(opts.to_argv()))
    assert read_options({}, flags).options == opts
    assert read_options({}, flags).problems == ()


@pytest.mark.parametrize("name", list(OPTIONS))
def test_every_default_is_a_value_of_its_option(name: str) -> None:
    text = PLAIN.text(name)
    if text:
        assert OPTIONS[name].parse(text) == getattr(PLAIN, name)
    elif name != "kargs":
        assert getattr(PLAIN, name) in ("", ())


def test_plain_options_mean_nothing_to_set() -> None:
    assert PLAIN.to_env() == {}
    assert PLAIN.to_argv() == []
    assert BcvkInstallOpts.from_env({}) == PLAIN


def test_help_names_every_flag_and_variable() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = re.sub(r"\s+", "", parser.format_help())
    for one in OPTIONS.values():
        assert one.flag in text
        assert one.variable in text


def test_sizes_are_shown_as_they_are_read() -> None:
    for text in ("2G", "2560M", "1T", "4097M", "3000000K"):
        parsed = OPTIONS["disk_size"].parse(text)
        assert isinstance(parsed, int)
        assert OPTIONS["disk_size"].parse(show_size(parsed)) == parsed
    assert OPTIONS["disk_size"].parse("4GiB") == OPTIONS["disk_size"].parse("4096 mb") == 4 << 30


@pytest.mark.parametrize("one", list(raw_combinations()))
def test_composefs_always_reaches_the_installer(one: Combination) -> None:
    environ = {OPTIONS[axis].variable: value for axis, value in one.values().items()}
    opts = read_options(environ).options
    args = opts.install_args()
    assert ("--composefs-backend" in args) is (one.variant is Variant.COMPOSEFS)
    assert ("--bootloader" in args) is ("--composefs-backend" in args)
    assert args[args.index("--filesystem") + 1] == one.filesystem
    assert ("--allow-missing-verity" in args) is (
        one.variant is Variant.COMPOSEFS and one.filesystem is Filesystem.XFS
    )
    assert all(type(arg) is str for arg in args)


def test_the_installer_gets_each_kernel_argument_whole() -> None:
    opts = BcvkInstallOpts.from_env({"BOOTC_kargs": "console=ttyS0 'a=b c' single"})
    assert opts.install_args() == [
        "--composefs-backend",
        "--bootloader",
        "systemd",
        "--filesystem",
        "ext4",
        "--karg=console=ttyS0",
        "--karg=a=b c",
        "--karg=single",
    ]


def test_firmware_follows_the_seal_and_needs_its_keys() -> None:
    sealed = replace(PLAIN, boot_type=BootType.UKI, seal_state=SealState.SEALED)
    assert PLAIN.firmware_args() == ["--firmware=uefi-insecure"]
    assert sealed.firmware_args("/keys") == ["--firmware=uefi-secure", "--secure-boot-keys=/keys"]
    with pytest.raises(BootcError, match="C9"):
        sealed.firmware_args()
    with pytest.raises(BootcError, match="C13"):
        PLAIN.firmware_args("/keys")


def test_a_machine_with_the_hosts_storage_needs_a_new_libvirt() -> None:
    PLAIN.check_machine(storage_bound=True, libvirt_version=(11, 3, 0))
    with pytest.raises(BootcError, match="C11") as caught:
        PLAIN.check_machine(storage_bound=True, libvirt_version=(9, 0, 0))
    assert caught.value.hint == "install libvirt 11, or do without the host's storage"


def test_labels_cover_what_shapes_the_image() -> None:
    labels = PLAIN.labels()
    assert labels["bootc.kit.variant"] == "composefs"
    assert labels["bootc.kit.initrd"] == "tiny"
    assert "bootc.kit.memory" not in labels
    assert "bootc.kit.filesystem" not in labels
    assert replace(PLAIN, boot_type=BootType.UKI).labels()["bootc.kit.filesystem"] == "ext4"
    shaping = {name for name, one in OPTIONS.items() if one.stage is Stage.IMAGE}
    assert {f"bootc.kit.{name}" for name in shaping} == set(labels)


def test_an_image_is_only_used_with_the_options_it_was_built_with() -> None:
    PLAIN.check_labels(PLAIN.labels() | {"other": "label"})
    other = PLAIN.labels() | {"bootc.kit.initrd": "dracut", "bootc.kit.bootloader": "grub"}
    with pytest.raises(BootcError) as caught:
        PLAIN.check_labels(other)
    assert "BOOTC_bootloader=systemd, the image has 'grub'" in caught.value.message
    assert "BOOTC_initrd=tiny, the image has 'dracut'" in caught.value.message
    assert "variant" not in caught.value.message
    assert caught.value.hint is not None
    assert "./dev invoke build" in caught.value.hint
    assert "BOOTC_bootloader=grub BOOTC_initrd=dracut" in caught.value.hint


def test_an_image_of_somebody_else_is_refused() -> None:
    with pytest.raises(BootcError, match=r"not built by this kit") as caught:
        replace(PLAIN, base_img="quay.io/a/b").check_labels({"containers.bootc": "1"})
    assert "BOOTC_base=quay.io/a/b" in (caught.value.hint or "")
    labels = PLAIN.labels()
    del labels["bootc.kit.initrd"]
    with pytest.raises(BootcError, match="BOOTC_initrd=tiny, the image does not say"):
        PLAIN.check_labels(labels)


def test_a_product_is_shaped_by_its_options_and_those_before_it() -> None:
    image, disk, machine = (PLAIN.shaping(s) for s in (Stage.IMAGE, Stage.DISK, Stage.MACHINE))
    assert "BOOTC_initrd" in image
    assert "BOOTC_kargs" not in image
    assert image.items() <= disk.items() <= machine.items()
    assert {"BOOTC_disk_size", "BOOTC_filesystem", "BOOTC_kargs"} <= disk.keys()
    assert {"BOOTC_memory", "BOOTC_accel"} == machine.keys() - disk.keys() - {"BOOTC_vcpus"}
    assert "BOOTC_nocache" not in machine


def test_booted_tests_are_told_where_they_run() -> None:
    told = replace(PLAIN, upgrade_image="localhost/next").guest_environment()
    assert told == {
        "BCVK_EXPORT": "1",
        "BOOTC_variant": "composefs",
        "BOOTC_boot_type": "bls",
        "BOOTC_upgrade_image": "localhost/next",
    }


def test_explain_shows_sources_rules_and_ways_out() -> None:
    lines = "\n".join(explain.explain({"BOOTC_seal_state": "sealed", "BOOTC_filesystem": "xfs"}))
    assert re.search(r"BOOTC_filesystem +xfs +environment BOOTC_filesystem", lines)
    assert "C1: sealed ⇒ boot_type=uki, because" in lines
    assert "nearest legal: BOOTC_seal_state=unsealed\n" in lines
    assert "BOOTC_boot_type=uki BOOTC_filesystem=ext4 (not supported yet)" in lines
    assert "did you mean grub?" in "\n".join(explain.explain({"BOOTC_bootloader": "gurb"}))
    assert "set BOOTC_boot_type=bls" in "\n".join(explain.explain({"BOOTC_boot_type": "uki"}))
    assert "legal and supported" in explain.explain({})


def test_variants_mark_the_one_in_force() -> None:
    lines = explain.variants_table(replace(PLAIN.combination, filesystem=Filesystem.BTRFS))
    assert len(lines) == 18
    marked = [line for line in lines if line.startswith("*")]
    assert [line.split() for line in marked] == [
        ["*", "composefs", "systemd", "bls", "unsealed", "btrfs", "yes"]
    ]
    assert "not legal" in explain.variants_table(NONE)[-1]


def test_the_matrix_holds_the_legal_combinations() -> None:
    rows = json.loads(explain.ci_matrix())
    assert len(rows) == 17
    for row in rows:
        environ = {OPTIONS[axis].variable: value for axis, value in row.items() if axis in OPTIONS}
        if row["supported"]:
            assert BcvkInstallOpts.from_env(environ).to_env().items() <= environ.items()
        else:
            assert "not supported yet" in refusal(environ)[0]
    assert json.loads(explain.ci_matrix(supported=True)) == [r for r in rows if r["supported"]]


def test_generated_docs_are_up_to_date() -> None:
    stale = [str(path.relative_to(ROOT)) for path in explain.plan_docs(ROOT)]
    assert stale == [], "run: python -m vmtests.explain"


def test_generated_text_is_put_between_its_markers(tmp_path: Path) -> None:
    begin, end = explain.BEGIN.format(name="variables"), explain.END.format(name="variables")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{begin}\nold\n{end}\nend\n")
    explain.apply_docs(explain.plan_docs(tmp_path))
    text = readme.read_text()
    assert text.startswith(f"# Title\n{begin}\n| Variable |")
    assert text.endswith(f"|\n{end}\nend\n")
    assert "old" not in text
    assert explain.plan_docs(tmp_path) == {}
    readme.write_text("# Title\n")
    assert explain.plan_docs(tmp_path) == {}
    readme.write_text(f"# Title\n{begin}\n")
    with pytest.raises(BootcError, match="no markers"):
        explain.plan_docs(tmp_path)


def test_every_variable_that_the_code_reads_is_declared() -> None:
    known = {one.variable for one in OPTIONS.values()} | set(FOREIGN) | set(REFUSED)
    sources = [*(ROOT / "bootc").rglob("*.py"), *(ROOT / "vmtests").rglob("*.py")]
    sources += [path for path in (ROOT / "tasks.py", ROOT / "noxfile.py") if path.exists()]
    for path in sources:
        for name in re.findall(r"""["'](_?BOOTC_\w+)["']""", path.read_text()):
            assert name in known or name == "BOOTC_", f"{path}: {name}"
