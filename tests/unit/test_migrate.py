# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Installs without the prefix get it; at no moment does an entry of the menu lack its files."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import paths
from bootc.boot import bls, menu
from bootc.deploy import messages
from bootc.deploy.cleanup import clean_up
from bootc.deploy.kernel import list_kernel_folders
from bootc.deploy.migrate import migrate, plan_migration
from bootc.deploy.sysroot import read_deployments, read_menu
from tests.cuts import run_until_cut
from tests.sysroots import ImageContent, MockMachine

FOREIGN = "title Other system\nlinux /other/vmlinuz\n"


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    machine = MockMachine(tmp_path / "m")
    for version in ("1", "2", "3"):
        content = ImageContent(version, kernel=version.encode() * 99)
        machine.install(machine.image(version, content))
    (machine.esp / paths.ENTRIES / "other.conf").write_text(FOREIGN)
    return machine


def unprefix(machine: MockMachine, *places: int) -> None:
    """Take the prefix from these deployments of the menu (all, if none is named)."""
    wanted = []
    for place, (_, entry) in enumerate(read_menu(machine.sysroot, paths.ENTRIES)):
        changed = entry
        if place in places or not places:
            assert entry.linux is not None
            folder = machine.esp / os.path.dirname(entry.linux).lstrip("/")
            folder.rename(folder.with_name(folder.name.removeprefix(paths.BOOT_PREFIX)))
            changed = replace(
                entry,
                linux=entry.linux.replace(paths.BOOT_PREFIX, ""),
                initrd=tuple(path.replace(paths.BOOT_PREFIX, "") for path in entry.initrd),
            )
        wanted.append(changed)
    menu.write_staged(str(machine.esp), wanted)
    menu.exchange(str(machine.esp))


def check_bootable(machine: MockMachine) -> None:
    """Every entry of the menu has its files, and they are the deployment's."""
    found = read_menu(machine.sysroot, paths.ENTRIES)
    assert len(found) == 3
    for _, entry in found:
        assert entry.linux is not None
        for path in (entry.linux, *entry.initrd):
            assert (machine.esp / path.lstrip("/")).is_file(), path
        number = entry.version
        kernel = (machine.esp / entry.linux.lstrip("/")).read_bytes()
        assert kernel == number.encode() * 99
    assert (machine.esp / paths.ENTRIES / "other.conf").read_text() == FOREIGN


def check_migrated(machine: MockMachine) -> None:
    check_bootable(machine)
    assert plan_migration(machine.sysroot) == ()
    folders = sorted(f"{paths.BOOT_PREFIX}{one.id}" for one in read_deployments(machine.sysroot))
    assert sorted(os.listdir(machine.esp / paths.ESP_KERNELS)) == folders
    assert list_kernel_folders(str(machine.esp)) == folders
    assert not menu.has_staged(str(machine.esp))


def test_an_unprefixed_install_is_migrated_once(machine: MockMachine) -> None:
    order = machine.menu()
    unprefix(machine)
    assert len(plan_migration(machine.sysroot)) == 3
    assert migrate(machine.sysroot)
    check_migrated(machine)
    assert machine.menu() == order
    before = sorted(path.stat().st_mtime_ns for path in machine.esp.rglob("*"))
    assert not migrate(machine.sysroot)
    assert sorted(path.stat().st_mtime_ns for path in machine.esp.rglob("*")) == before
    assert clean_up(machine.sysroot, prune=False).plan.kernels == ()


@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_defect_18_a_mixed_state_loses_no_entry(
    machine: MockMachine, places: tuple[int, ...]
) -> None:
    order = machine.menu()
    unprefix(machine, *places)
    assert migrate(machine.sysroot)
    check_migrated(machine)
    assert machine.menu() == order


def test_a_kernel_that_is_shared_is_moved_for_both(machine: MockMachine) -> None:
    unprefix(machine)
    found = [entry for _, entry in read_menu(machine.sysroot, paths.ENTRIES)]
    shared = [replace(entry, linux=found[2].linux, initrd=found[2].initrd) for entry in found[:2]]
    menu.write_staged(str(machine.esp), [*shared, found[2]])
    menu.exchange(str(machine.esp))
    assert len(plan_migration(machine.sysroot)) == 1
    migrate(machine.sysroot)
    folders = {
        os.path.basename(os.path.dirname(entry.linux or ""))
        for _, entry in read_menu(machine.sysroot, paths.ENTRIES)
    }
    assert folders == {f"{paths.BOOT_PREFIX}{machine.menu()[2]}"}


def test_unified_kernel_images_are_migrated_with_their_addons(tmp_path: Path) -> None:
    machine = MockMachine(tmp_path / "m")
    name = "ab" * 64
    folder = machine.esp / paths.ESP_KERNELS / "bootc"
    (folder / f"{name}.efi.extra.d").mkdir(parents=True)
    (folder / f"{name}.efi").write_text("uki")
    (folder / f"{name}.efi.extra.d" / "a.addon.efi").write_text("addon")
    (machine.esp / paths.ENTRIES).mkdir(parents=True)
    entry = bls.Entry(version="1", efi=f"/EFI/Linux/bootc/{name}.efi")
    (machine.esp / paths.ENTRIES / "bootc_x-1-1.conf").write_text(entry.to_text())
    assert migrate(machine.sysroot)
    assert not migrate(machine.sysroot)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        f"{paths.BOOT_PREFIX}{name}.efi",
        f"{paths.BOOT_PREFIX}{name}.efi.extra.d",
        f"{paths.BOOT_PREFIX}{name}.efi.extra.d/a.addon.efi",
    ]
    ((_, found),) = read_menu(machine.sysroot, paths.ENTRIES)
    assert found.efi == f"/EFI/Linux/bootc/{paths.BOOT_PREFIX}{name}.efi"


def test_cut_at_any_change_everything_boots_and_the_next_run_finishes(
    machine: MockMachine,
) -> None:
    unprefix(machine, 0, 2)
    model = machine.path.with_name("model")
    machine.path.rename(model)
    rng = random.Random(seed := random.randrange(1 << 32))
    number = cuts = 0
    while True:
        shutil.copytree(model, machine.path, symlinks=True)
        if not run_until_cut(lambda: migrate(machine.sysroot), number):
            break
        cuts += 1
        check_bootable(machine)
        migrate(machine.sysroot)
        check_migrated(machine)
        print(f"cut {number}, seed {seed}")
        shutil.rmtree(machine.path)
        number += rng.randint(1, 6)
    assert cuts > 5


def test_nothing_is_done_while_something_is_staged(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    unprefix(machine, 1)
    found = [entry for _, entry in read_menu(machine.sysroot, paths.ENTRIES)]
    menu.write_staged(str(machine.esp), found[:2])
    machine.stage_mark(machine.menu()[1])
    assert not migrate(machine.sysroot)
    assert menu.has_staged(str(machine.esp))
    check_bootable(machine)
    assert "the next start migrates" in caplog.text
    assert [getattr(record, "MESSAGE_ID", None) for record in caplog.records] == [messages.SKIPPED]


def test_an_entry_that_cannot_be_read_is_not_dropped(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    unprefix(machine)
    damaged = machine.esp / paths.ENTRIES / "bootc_half-1-0.conf"
    damaged.write_text("title half")
    assert not migrate(machine.sysroot)
    assert damaged.exists()
    check_bootable(machine)
    assert "bootc_half-1-0.conf cannot be read" in caplog.text


def test_missing_files_are_told(machine: MockMachine, caplog: pytest.LogCaptureFixture) -> None:
    unprefix(machine, 2)
    shutil.rmtree(machine.esp / plan_migration(machine.sysroot)[0].old)
    assert not migrate(machine.sysroot)
    assert "is not there" in caplog.text


def test_what_is_not_ours_stays(machine: MockMachine) -> None:
    other = machine.esp / paths.ESP_KERNELS / ("cd" * 64)
    other.mkdir()
    assert not migrate(machine.sysroot)
    assert other.is_dir()
    assert not migrate(replace(machine.sysroot, esp=None))
