# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Deployments that boot by a unified kernel image: staged, finalized, rolled back, cleaned up."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import paths
from bootc.boot import menu, pe
from bootc.deploy import check, state, update
from bootc.deploy.cleanup import clean_up
from bootc.deploy.delete import delete_deployment
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.kernel import list_kernel_folders
from bootc.deploy.rollback import rollback
from bootc.deploy.sysroot import read_deployments
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError, FormatError, chain_text, find_hint
from bootc.oci.reference import parse_imgref
from bootc.spec import Bootloader, BootType
from bootc.status import describe
from tests.sysroots import (
    ImageContent,
    MockMachine,
    everything,
    follow,
    make_uki,
    started,
    started_files,
    unified,
)

NOTHING = UpgradeOptions()


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def sealed(machine: MockMachine, content: ImageContent, image: str | None = None) -> ImageContent:
    folder = machine.path / f"sealed-{content.version}-{len(os.listdir(machine.path))}"
    return unified(content, folder, image=image)


def first_of(machine: MockMachine) -> str:
    """A machine that boots by a UKI."""
    content = sealed(machine, ImageContent("1"))
    return machine.install(machine.image("updates", content))


def upgraded(machine: MockMachine, content: ImageContent) -> str:
    follow(machine, content.version, content)
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    return done.staged.id


def test_a_life_with_unified_kernel_images(machine: MockMachine) -> None:
    first = first_of(machine)
    machine.check_whole()
    assert list_kernel_folders(str(machine.esp)) == [f"bootc/{paths.BOOT_PREFIX}{first}.efi"]
    second = upgraded(machine, sealed(machine, ImageContent("2", kernel=b"kernel 2")))
    found = describe(machine.sysroot, selinux=False).status
    assert found.staged is not None
    assert found.staged.composefs is not None
    assert found.staged.composefs.boot_type is BootType.UKI
    assert found.staged.composefs.missing_verity_allowed
    assert not found.staged.soft_reboot_capable
    origin = state.read_origin(str(machine.root), second)
    assert origin is not None
    assert origin.boot_type is BootType.UKI
    finalize_staged(machine.sysroot)
    assert machine.reboot() == second
    machine.check_whole()
    assert machine.menu() == [second, first]
    rollback(machine.sysroot)
    assert machine.reboot() == first
    # The third takes the place of the second, whose file goes.
    third = upgraded(machine, sealed(machine, ImageContent("3")))
    finalize_staged(machine.sysroot)
    assert machine.reboot() == third
    machine.check_whole()
    names = sorted(f"bootc/{paths.BOOT_PREFIX}{name}.efi" for name in (first, third))
    assert list_kernel_folders(str(machine.esp)) == names
    deployments, _ = check.check_system(machine.sysroot)
    assert deployments.problems == ()


def test_entries_are_in_the_order_of_both_boot_loaders(machine: MockMachine) -> None:
    first = first_of(machine)
    second = upgraded(machine, sealed(machine, ImageContent("2")))
    finalize_staged(machine.sysroot)
    folder = machine.esp / paths.ENTRIES
    # grub takes the names, the last first; systemd-boot the sort keys, the first first.
    by_name = sorted(os.listdir(folder), reverse=True)
    assert by_name == ["bootc_mock-2-1.conf", "bootc_mock-1-0.conf"]
    texts = [(folder / name).read_text() for name in by_name]
    path = f"/EFI/Linux/bootc/{paths.BOOT_PREFIX}{second}.efi"
    assert texts[0] == f"title Mock 2\nversion 2\nefi {path}\nsort-key bootc-mock-0\n"
    assert texts[1].endswith("sort-key bootc-mock-1\n")
    assert f"{first}.efi" in texts[1]


@pytest.mark.parametrize(
    ("said", "loader", "key"),
    [
        ("systemd 258 (258.1-1)", Bootloader.SYSTEMD, "uki"),
        ("systemd 257 (257.9-1)", Bootloader.SYSTEMD, "efi"),
        ("systemd 258 (258.1-1)", Bootloader.GRUB_CC, "efi"),
        ("what?", Bootloader.SYSTEMD, "efi"),
    ],
)
def test_the_key_is_one_that_the_boot_loader_knows(
    machine: MockMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    loader: Bootloader,
    key: str,
) -> None:
    first_of(machine)
    machine.sysroot = replace(machine.sysroot, bootloader=loader)
    program = tmp_path / "bin" / "bootctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    second = upgraded(machine, sealed(machine, ImageContent("2")))
    found = {one.id: one for one in read_deployments(machine.sysroot)}[second]
    assert found.entry is not None
    assert {"efi": found.entry.efi, "uki": found.entry.uki}[key] is not None
    assert len(started_files(found.entry)) == 1


def test_the_wrong_digest_is_refused_and_changes_nothing(machine: MockMachine) -> None:
    first = first_of(machine)
    wrong = "f" * 128
    follow(machine, "2", sealed(machine, ImageContent("2"), wrong))
    before = everything(machine.esp), everything(machine.run)
    with pytest.raises(BootcError) as caught:
        update.upgrade(machine.sysroot, NOTHING)
    said = chain_text(caught.value)
    assert said.startswith(f"The UKI has the wrong composefs= parameter (is '{wrong}', should be '")
    assert find_hint(caught.value) is not None
    assert (everything(machine.esp), everything(machine.run)) == before
    assert state.list_deployments(str(machine.root)) == [first]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"", "is no PE file"),
        (lambda data: b"MZ", "is no PE file"),
        (lambda data: data.replace(b"PE\0\0", b"PX\0\0"), "is no PE file"),
        (lambda data: data[:0x3C] + b"\xff\xff\xff\x7f" + data[0x40:], "is no PE file"),
        (lambda data: data[:100], "ends in its table of sections"),
        (lambda data: data[:1100], "ends beyond the file"),
        (lambda data: data.replace(b".cmdline", b".cmdlin_"), "name no composefs image"),
        (lambda data: data.replace(b"composefs=?", b"composefsx?"), "name no composefs image"),
        (lambda data: data.replace(b"composefs=?", b"composefs=!"), "is not a digest"),
        (lambda data: data.replace(b".linux\0", b".binux\0"), "has no .linux section"),
        (lambda data: data.replace(b"=?", b"= "), "name no composefs image"),
    ],
)
def test_damaged_unified_kernel_images_are_refused(
    machine: MockMachine, damage: Callable[[bytes], bytes], problem: str
) -> None:
    first = first_of(machine)
    content = sealed(machine, ImageContent("2"))
    name = "boot/EFI/Linux/mock.efi"
    content.extra[name] = damage(content.extra[name])
    follow(machine, "2", content)
    with pytest.raises(BootcError, match=problem):
        update.upgrade(machine.sysroot, NOTHING)
    assert not menu.has_staged(str(machine.esp))
    assert state.list_deployments(str(machine.root)) == [first]


def test_one_that_demands_verity_is_refused_where_there_is_none(machine: MockMachine) -> None:
    first = first_of(machine)
    content = sealed(machine, ImageContent("2"))
    name = "boot/EFI/Linux/mock.efi"
    content.extra[name] = content.extra[name].replace(b"composefs=?", b" composefs=")
    follow(machine, "2", content)
    with pytest.raises(BootcError, match="demands fs-verity") as caught:
        update.upgrade(machine.sysroot, NOTHING)
    assert caught.value.hint is not None
    assert machine.menu() == [first]


def test_two_are_refused_and_an_addon_is_none(machine: MockMachine) -> None:
    first_of(machine)
    content = sealed(machine, ImageContent("2"))
    content.extra["boot/EFI/Linux/x.addon.efi"] = b"MZ"
    upgraded(machine, content)
    content = sealed(machine, ImageContent("3"))
    content.extra["boot/EFI/Linux/second.efi"] = b"MZ"
    follow(machine, "3", content)
    with pytest.raises(BootcError, match=r"several unified kernel images: mock\.efi, second\.efi"):
        update.upgrade(machine.sysroot, NOTHING)


def test_from_files_to_one_and_back(machine: MockMachine) -> None:
    first = started(machine)
    second = upgraded(machine, sealed(machine, ImageContent("2")))
    finalize_staged(machine.sysroot)
    assert machine.reboot() == second
    # The arguments of what runs are those in the UKI; its image's kargs.d are no part of them.
    third = upgraded(machine, ImageContent("3"))
    found = {one.id: one for one in read_deployments(machine.sysroot)}
    assert found[second].is_uki
    assert found[second].arguments == ["rw", "quiet", f"composefs=?{second}"]
    assert found[third].arguments == ["rw", "quiet", f"composefs=?{third}"]
    assert found[first].arguments[-1] == f"composefs=?{first}"
    origin = state.read_origin(str(machine.root), third)
    before = state.read_origin(str(machine.root), first)
    assert origin is not None
    assert before is not None
    # The same kernel as the first's, whose folder is there still.
    assert origin.boot_digest == before.boot_digest
    assert found[third].kernel_folder == found[first].kernel_folder
    finalize_staged(machine.sysroot)
    assert machine.reboot() == third
    machine.check_whole()


def test_arguments_that_are_lost_are_not_made_up(machine: MockMachine) -> None:
    first = first_of(machine)
    path = machine.esp / paths.uki_file(first)
    path.write_bytes(path.read_bytes()[:40])
    follow(machine, "2")
    with pytest.raises(BootcError, match="its unified kernel image cannot be read") as caught:
        update.upgrade(machine.sysroot, NOTHING)
    assert caught.value.hint is not None
    # Another UKI brings its own.
    assert upgraded(machine, sealed(machine, ImageContent("3"))) != first


def test_a_soft_reboot_needs_the_same_arguments_in_it(machine: MockMachine) -> None:
    first_of(machine)
    same = sealed(machine, ImageContent("2"))
    upgraded(machine, same)
    staged = describe(machine.sysroot, selinux=False).status.staged
    assert staged is not None
    assert staged.soft_reboot_capable
    other = sealed(machine, ImageContent("3"))
    name = "boot/EFI/Linux/mock.efi"
    other.extra[name] = other.extra[name].replace(b"rw quiet", b"rw debug")
    upgraded(machine, other)
    staged = describe(machine.sysroot, selinux=False).status.staged
    assert staged is not None
    assert not staged.soft_reboot_capable


def test_garbage_of_unified_kernel_images(machine: MockMachine) -> None:
    first = first_of(machine)
    folder = machine.esp / paths.UKI_FOLDER
    for name in ("a" * 128, "b" * 128):
        (folder / f"{paths.BOOT_PREFIX}{name}.efi").write_bytes(b"old")
        (folder / f"{paths.BOOT_PREFIX}{name}.efi.extra.d").mkdir()
    # Of one only the addons are left, of another a half-written file; and somebody else's.
    (folder / f"{paths.BOOT_PREFIX}{'a' * 128}.efi").unlink()
    (folder / f"{paths.BOOT_PREFIX}{'c' * 128}.efi.new").write_bytes(b"half")
    (folder / "theirs.efi").write_bytes(b"theirs")
    kept = {f"{paths.BOOT_PREFIX}{first}.efi", "theirs.efi"}
    result = clean_up(machine.sysroot, dry_run=True)
    assert [line for line in result.plan.describe() if line.startswith("Kernel: ")] == [
        f"Kernel: bootc/{paths.BOOT_PREFIX}{letter * 128}.efi" for letter in "abc"
    ]
    clean_up(machine.sysroot)
    assert set(os.listdir(folder)) == kept
    assert clean_up(machine.sysroot, assert_no_op=True).is_no_op


def test_a_staged_one_can_be_deleted(machine: MockMachine) -> None:
    first = first_of(machine)
    second = upgraded(machine, sealed(machine, ImageContent("2")))
    delete_deployment(machine.sysroot, second)
    assert list_kernel_folders(str(machine.esp)) == [f"bootc/{paths.BOOT_PREFIX}{first}.efi"]
    assert machine.menu() == [first]


def test_the_same_image_is_refused_as_ever(machine: MockMachine) -> None:
    first_of(machine)
    target = parse_imgref(machine.image("copy", sealed(machine, ImageContent("1"))))
    with pytest.raises(BootcError, match="same fs-verity digest as the existing booted"):
        update.switch(machine.sysroot, target)


def test_sections_are_as_long_as_their_content() -> None:
    data = make_uki(ImageContent("1", kernel=b"k" * 700), "0" * 128)

    def read(at: int, count: int) -> bytes:
        return data[at : at + count]

    found = pe.read_sections(read, len(data), "x")
    assert list(found) == [".osrel", ".cmdline", ".linux", ".initrd"]
    assert read(found[".linux"].offset, found[".linux"].size) == b"k" * 700
    assert pe.read_cmdline(read, len(data), "x") == f"rw quiet composefs=?{'0' * 128}"
    many = data.replace(struct.pack("<HH", 0x8664, 4), struct.pack("<HH", 0x8664, 5000))
    with pytest.raises(FormatError, match="5000 sections"):
        pe.read_sections(lambda at, count: many[at : at + count], len(many), "x")
