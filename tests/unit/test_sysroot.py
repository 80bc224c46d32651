# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The deployments of a sysroot, read from its boot entries, and the ways to open one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootc import paths
from bootc.boot import entries, menu
from bootc.deploy import sysroot as sysroots
from bootc.errors import BootcError
from tests.sysroots import ImageContent, MockMachine


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def test_deployments_in_the_order_of_the_menu(machine: MockMachine) -> None:
    ids = [machine.install(machine.image(str(number))) for number in range(3)]
    found = sysroots.read_deployments(machine.sysroot)
    assert [one.id for one in found] == ids
    assert machine.sysroot.booted == ids[0]
    assert [one.staged for one in found] == [False, False, False]
    assert all(one.insecure and one.origin is not None for one in found)
    assert found[0].kernel_folder == f"{paths.BOOT_PREFIX}{ids[0]}"


def test_staged_ones_come_last_and_each_once(machine: MockMachine) -> None:
    ids = [machine.install(machine.image(str(number))) for number in range(2)]
    found = sysroots.read_deployments(machine.sysroot)
    new = entries.make_entry(entries.OsRelease(), "0a" * 64, [f"composefs={'0a' * 64}"])
    assert found[0].entry is not None
    menu.write_staged(str(machine.esp), [new, found[0].entry])
    found = sysroots.read_deployments(machine.sysroot)
    assert [(one.id, one.staged) for one in found] == [
        (ids[0], False),
        (ids[1], False),
        ("0a" * 64, True),
    ]
    assert found[2].origin is None


def test_a_booted_deployment_without_an_entry(machine: MockMachine) -> None:
    first = machine.install(machine.image("1"))
    for file in (machine.esp / paths.ENTRIES).iterdir():
        file.unlink()
    [found] = sysroots.read_deployments(machine.sysroot)
    assert (found.id, found.entry, found.file, found.insecure) == (first, None, None, True)


def test_damaged_entries_and_origins_are_told_and_left_out(
    machine: MockMachine, caplog: pytest.LogCaptureFixture
) -> None:
    first = machine.install(machine.image("1"))
    second = machine.install(machine.image("2"))
    (machine.esp / paths.ENTRIES / "bootc_mock-9-5.conf").write_text("version 1\noptions composefs")
    (machine.root / paths.origin_file(first)).write_text("[origin\n")
    (machine.root / paths.origin_file(second)).unlink()
    found = sysroots.read_deployments(machine.sysroot)
    assert [(one.id, one.origin) for one in found] == [(first, None), (second, None)]
    assert "bootc_mock-9-5.conf is left out" in caplog.text
    assert "is not an INI file" in caplog.text
    assert f"deployment {second} has a boot entry, but no origin file" in caplog.text
    sysroots.read_deployments(machine.sysroot)
    assert caplog.text.count("is not an INI file") == 1
    assert caplog.text.count("no origin file") == 1


def test_the_menu_is_exchanged_with_the_entries_of_other_systems(machine: MockMachine) -> None:
    machine.install(machine.image("1", ImageContent("1", os_id="some-os")))
    other = machine.esp / paths.ENTRIES / "memtest.conf"
    other.write_text("title Memtest\nefi /memtest.efi\n")
    [found] = sysroots.read_deployments(machine.sysroot)
    assert found.entry is not None
    new = entries.make_entry(entries.OsRelease(), "0a" * 64, [f"composefs={'0a' * 64}"])
    menu.write_staged(str(machine.esp), [new, found.entry])
    menu.exchange(str(machine.esp))
    assert machine.menu() == ["0a" * 64, found.id]
    assert other.read_text() == "title Memtest\nefi /memtest.efi\n"
    assert not menu.has_staged(str(machine.esp))


def test_without_an_exchange_each_step_can_be_booted(machine: MockMachine) -> None:
    first = machine.install(machine.image("1"))
    machine.install(machine.image("2"))
    [one, _] = sysroots.read_deployments(machine.sysroot)
    new = entries.make_entry(entries.OsRelease(), "0a" * 64, [f"composefs={'0a' * 64}"])
    assert one.entry is not None
    menu.write_staged(str(machine.esp), [new, one.entry])
    menu.exchange_by_file(str(machine.esp / "loader"))
    assert machine.menu() == ["0a" * 64, first]


def test_open_what_is_no_sysroot(tmp_path: Path) -> None:
    with (
        pytest.raises(BootcError, match="is not the root of a system that bootc installed"),
        sysroots.open_at(str(tmp_path)),
    ):
        pass


def test_refusals_of_a_machine_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("container", "podman")
    with (
        pytest.raises(BootcError, match="requires a booted host system") as caught,
        sysroots.open_booted(writable=True),
    ):
        pass
    assert caught.value.hint == "run it on the machine itself"
