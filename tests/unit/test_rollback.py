# SPDX-License-Identifier: Apache-2.0 OR MIT
"""rollback and delete-deployment on a mock machine: what boots next, and what is gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootc import paths
from bootc.deploy import state, update
from bootc.deploy.delete import delete_deployment
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.rollback import rollback
from bootc.deploy.stage import SameImageError
from bootc.deploy.sysroot import read_deployments
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError
from bootc.oci.reference import parse_imgref
from tests.sysroots import ImageContent, MockMachine, follow, started

NOTHING = UpgradeOptions()


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def test_rollback_with_any_number_of_entries(machine: MockMachine) -> None:
    """Spec §14, 4: upstream asserts that there are exactly two."""
    a, b, c = (machine.install(machine.image(str(number))) for number in range(3))
    assert rollback(machine.sysroot).lines == ("Next boot: rollback deployment",)
    assert machine.menu() == [b, a, c]
    names = sorted(os.listdir(machine.esp / paths.ENTRIES))
    # And it names the files after an operating system called bootc.
    assert names == ["bootc_mock-0-1.conf", "bootc_mock-1-2.conf", "bootc_mock-2-0.conf"]
    lines = rollback(machine.sysroot).lines
    assert lines == ("notice: Reverting queued rollback state", "Next boot: current deployment")
    assert machine.menu() == [a, b, c]


def test_rollback_without_any(machine: MockMachine) -> None:
    started(machine)
    with pytest.raises(BootcError, match="No rollback available"):
        rollback(machine.sysroot)


def test_what_is_staged_first_can_be_dropped_as_the_hints_say(machine: MockMachine) -> None:
    """Where there is nothing to roll back to, `bootc rollback` could not do it."""
    started(machine)
    follow(machine, "2")
    made = update.upgrade(machine.sysroot, NOTHING).staged
    assert made is not None
    with pytest.raises(BootcError, match="No rollback available") as caught:
        rollback(machine.sysroot)
    assert "bootc delete-deployment ID" in str(caught.value.hint)
    same = parse_imgref(machine.image("same", ImageContent("2")))
    with pytest.raises(SameImageError) as again:
        update.switch(machine.sysroot, same)
    named = f"bootc delete-deployment {made.id[:16]}"
    assert str(again.value.hint).endswith(named)
    delete_deployment(machine.sysroot, named.split()[-1])
    assert not os.path.exists(machine.sysroot.staged_file)
    with pytest.raises(BootcError, match="an empty id is no deployment"):
        delete_deployment(machine.sysroot, "")


def test_rollback_with_a_damaged_entry(machine: MockMachine) -> None:
    """Spec §14, 4: upstream panics."""
    a, b = (machine.install(machine.image(str(number))) for number in range(2))
    (machine.esp / paths.ENTRIES / "bootc_mock-7-7.conf").write_text("options composefs=\n")
    rollback(machine.sysroot)
    assert machine.menu() == [b, a]


def test_rollback_drops_what_is_staged(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    second = machine.reboot()
    follow(machine, "3")
    update.upgrade(machine.sysroot, NOTHING)
    lines = rollback(machine.sysroot).lines
    assert lines == ("notice: Discarding the staged deployment", "Next boot: rollback deployment")
    assert finalize_staged(machine.sysroot) is None
    assert machine.menu()[1] == second


def test_reboot_managers_and_watchers_hear_of_a_rollback(machine: MockMachine) -> None:
    """Spec §14, 5: upstream's leaves no /run/reboot-required and touches nothing."""
    started(machine)
    origin = read_deployments(machine.sysroot)[0].origin
    assert origin is not None
    follow(machine, "2")
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    machine.reboot()
    watched = machine.root / "composefs/bootc"
    os.utime(watched, (1, 1))
    mark = machine.run / "reboot-required"
    rollback(machine.sysroot)
    assert mark.read_text() == f"{origin.manifest_digest}\n"
    assert watched.stat().st_mtime > 1
    rollback(machine.sysroot)
    assert not mark.exists()


def test_delete(machine: MockMachine) -> None:
    a, b, c = (
        machine.install(
            machine.image(str(number), ImageContent(str(number), kernel=b"%d" % number))
        )
        for number in range(3)
    )
    with pytest.raises(BootcError, match="Cannot delete the booted deployment"):
        delete_deployment(machine.sysroot, a)
    with pytest.raises(BootcError, match="is no deployment"):
        delete_deployment(machine.sysroot, "0" * 128)
    assert delete_deployment(machine.sysroot, c[:16]) == f"Deleted the other deployment {c}"
    assert machine.menu() == [a, b]
    rollback(machine.sysroot)
    assert delete_deployment(machine.sysroot, b) == f"Deleted the rollback deployment {b}"
    assert machine.menu() == [a]
    assert state.list_deployments(str(machine.root)) == [a]
    assert os.listdir(machine.esp / paths.ESP_KERNELS) == [f"{paths.BOOT_PREFIX}{a}"]
    assert machine.reboot() == a


def test_delete_what_is_staged(machine: MockMachine) -> None:
    first = started(machine)
    follow(machine, "2")
    done = update.upgrade(machine.sysroot, NOTHING)
    assert done.staged is not None
    said = delete_deployment(machine.sysroot, done.staged.id)
    assert said == f"Deleted the staged deployment {done.staged.id}"
    assert finalize_staged(machine.sysroot) is None
    assert state.list_deployments(str(machine.root)) == [first]
