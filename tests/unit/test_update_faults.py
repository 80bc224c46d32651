# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A cut at every change of the file system: something whole boots, and the retry succeeds.

Two kinds of cut: power, where /run is empty afterwards, and SIGKILL, where it isn't.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bootc.boot import menu
from bootc.composefs.progress import Event
from bootc.composefs.pull import pull
from bootc.composefs.repository import Repository
from bootc.deploy import state, update
from bootc.deploy.cleanup import clean_up
from bootc.deploy.delete import delete_deployment
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.progress import UPDATING, Observer, Stage
from bootc.deploy.rollback import rollback
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError, chain_text, find_hint
from bootc.oci.layout import open_source
from bootc.oci.reference import parse_imgref
from bootc.status import describe
from tests.cuts import run_until_cut
from tests.sysroots import ImageContent, MockMachine

NOTHING = UpgradeOptions()
CUTS_MAX = 400


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MockMachine]:
    """A machine with an update to come, and the same with it staged, and with it booted."""
    top = tmp_path_factory.mktemp("faults")
    fresh = MockMachine(top / "fresh")
    fresh.install(fresh.image("updates", ImageContent("1")))
    (fresh.etc(fresh.menu()[0]) / "mine").write_text("mine\n")
    fresh.image("updates", ImageContent("2", kernel=b"kernel 2"))
    staged = fresh.copied(top / "staged")
    update.upgrade(staged.sysroot, NOTHING)
    updated = staged.copied(top / "updated")
    finalize_staged(updated.sysroot)
    updated.reboot()
    return {"fresh": fresh, "staged": staged, "updated": updated}


def cuts(
    machine: MockMachine, top: Path, work: Callable[[MockMachine], object], *, every: int = 1
) -> Iterator[MockMachine]:
    """A copy of the machine for each change that the work makes, cut before that change.

    `every`: or for each second, third, … one.
    """
    for number in range(0, CUTS_MAX, every):
        copy = machine.copied(top / str(number))
        if not run_until_cut(partial(work, copy), number):
            assert number > 5, "hardly anything was changed: the cuts don't reach the work"
            return
        yield copy
        shutil.rmtree(copy.path)
    raise AssertionError(f"more than {CUTS_MAX} changes")


def upgrade_to_the_end(machine: MockMachine) -> str:
    """Retry the upgrade, finalize, reboot; the id that is booted then."""
    update.upgrade(machine.sysroot, NOTHING)
    finalize_staged(machine.sysroot)
    booted = machine.reboot()
    assert (machine.etc(booted) / "mine").read_text() == "mine\n"
    return booted


def check_status(machine: MockMachine, booted: str) -> None:
    """The status tells what is booted, and of what is staged only what is whole."""
    host = describe(machine.sysroot, selinux=False)
    assert host.status.booted is not None
    assert host.status.booted.composefs is not None
    assert host.status.booted.composefs.verity == booted
    mark = state.read_staged(machine.sysroot.staged_file)
    assert (host.status.staged is None) == (mark is None)


@pytest.mark.parametrize("power", [True, False], ids=["power", "kill"])
def test_upgrade(machines: dict[str, MockMachine], tmp_path: Path, power: bool) -> None:
    [first] = machines["fresh"].menu()
    expected = machines["updated"].menu()
    for machine in cuts(
        machines["fresh"],
        tmp_path,
        lambda one: update.upgrade(one.sysroot, NOTHING),
        every=1 if power else 3,
    ):
        if power:
            assert machine.reboot() == first
        machine.check_whole()
        check_status(machine, first)
        assert machine.menu() == [first]
        upgrade_to_the_end(machine)
        assert machine.menu() == expected
        clean_up(machine.sysroot)
        machine.check_whole()
        assert clean_up(machine.sysroot, dry_run=True).is_no_op


@pytest.mark.parametrize("power", [True, False], ids=["power", "kill"])
def test_finalize(machines: dict[str, MockMachine], tmp_path: Path, power: bool) -> None:
    [first] = machines["staged"].menu()
    second = machines["updated"].menu()[0]
    seen = set()
    for machine in cuts(machines["staged"], tmp_path, lambda one: finalize_staged(one.sysroot)):
        machine.check_whole()
        if power:
            booted = machine.reboot()
            seen.add(booted)
            check_status(machine, booted)
            if booted == first:
                assert upgrade_to_the_end(machine) == second
            else:
                assert (machine.etc(second) / "mine").read_text() == "mine\n"
                assert update.upgrade(machine.sysroot, NOTHING).lines == (update.NO_UPDATE,)
        else:
            finalize_staged(machine.sysroot)
            assert machine.reboot() == second
        assert machine.menu() == [second, first]
        machine.check_whole()
    assert not power or seen == {first, second}


def test_an_exchange_file_by_file(machines: dict[str, MockMachine], tmp_path: Path) -> None:
    """Where the ESP cannot exchange folders: at any moment all that is shown can be booted."""
    [first] = machines["staged"].menu()
    second = machines["updated"].menu()[0]
    seen = set()

    def exchange(machine: MockMachine) -> None:
        menu.exchange_by_file(str(machine.esp / "loader"))
        menu.discard_staged(str(machine.esp))

    for machine in cuts(machines["staged"], tmp_path, exchange):
        machine.check_whole()
        assert first in machine.menu()
        seen.add(machine.reboot())
        assert finalize_staged(machine.sysroot) is None
        update.upgrade(machine.sysroot, NOTHING)
        finalize_staged(machine.sysroot)
        assert machine.reboot() == second
        machine.check_whole()
    assert seen == {first, second}


def test_rollback(machines: dict[str, MockMachine], tmp_path: Path) -> None:
    second, first = machines["updated"].menu()
    seen = set()
    for machine in cuts(machines["updated"], tmp_path, lambda one: rollback(one.sysroot)):
        machine.check_whole()
        seen.add(machine.reboot())
        check_status(machine, machine.menu()[0])
        assert sorted(machine.menu()) == sorted([first, second])
        booted = machine.sysroot.booted
        rollback(machine.sysroot)
        assert machine.reboot() != booted
    assert seen == {first, second}


def test_delete(machines: dict[str, MockMachine], tmp_path: Path) -> None:
    second, first = machines["updated"].menu()
    for machine in cuts(
        machines["updated"], tmp_path, lambda one: delete_deployment(one.sysroot, first)
    ):
        assert machine.reboot() == second
        machine.check_whole()
        clean_up(machine.sysroot)
        assert clean_up(machine.sysroot, dry_run=True).is_no_op
        machine.check_whole()


def test_dropping_what_is_staged(machines: dict[str, MockMachine], tmp_path: Path) -> None:
    [first] = machines["staged"].menu()
    staged = machines["updated"].menu()[0]
    for machine in cuts(
        machines["staged"], tmp_path, lambda one: delete_deployment(one.sysroot, staged)
    ):
        machine.check_whole()
        check_status(machine, first)
        finalize_staged_or_nothing(machine)
        assert machine.reboot() in (first, staged)
        machine.check_whole()


def test_what_is_staged_stays_until_another_is_whole(
    machines: dict[str, MockMachine], tmp_path: Path
) -> None:
    """A switch is staged, and an upgrade of it is killed: the switch is not forgotten.

    Only in the middle of the last step, a few changes of /run and the ESP, nothing is staged.
    """
    base = machines["fresh"].copied(tmp_path / "base")
    [first] = base.menu()
    base.path.joinpath("images").mkdir()
    target = parse_imgref(base.image("other", ImageContent("8", kernel=b"kernel 8")))
    old = update.switch(base.sysroot, target).staged
    base.image("other", ImageContent("9", kernel=b"kernel 9"))
    assert old is not None
    seen = set()
    none_staged = 0
    for machine in cuts(base, tmp_path, lambda one: update.upgrade(one.sysroot, NOTHING)):
        check_status(machine, first)
        mark = state.read_staged(machine.sysroot.staged_file)
        if mark is None:
            none_staged += 1
            assert machine.reboot() == first
            machine.check_whole()
            continue
        if mark.deployment == old.id:
            new = update.upgrade(machine.sysroot, NOTHING).staged
            assert new is not None
            assert new.image == target
        finalize_staged(machine.sysroot)
        seen.add(mark.deployment == old.id)
        assert (machine.etc(machine.reboot()) / "mine").read_text() == "mine\n"
        machine.check_whole()
        clean_up(machine.sysroot)
        assert clean_up(machine.sysroot, dry_run=True).is_no_op
    assert seen == {True, False}
    assert none_staged <= 4


def test_a_failure_keeps_what_is_staged(
    machines: dict[str, MockMachine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machines["staged"].copied(tmp_path / "machine")
    mark = state.read_staged(machine.sysroot.staged_file)
    assert mark is not None
    machine.path.joinpath("images").mkdir()
    target = parse_imgref(machine.image("other", ImageContent("9", kernel=b"kernel 9")))
    before = state.list_deployments(str(machine.root))
    with monkeypatch.context() as patched:
        patched.setattr(state, "write_origin", refuse)
        with pytest.raises(BootcError, match="cannot be written"):
            update.switch(machine.sysroot, target)
    assert state.read_staged(machine.sysroot.staged_file) == mark
    assert state.list_deployments(str(machine.root)) == before
    assert finalize_staged(machine.sysroot) is not None
    assert machine.reboot() == mark.deployment
    clean_up(machine.sysroot)
    machine.check_whole()


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def finalize_staged_or_nothing(machine: MockMachine) -> None:
    """What is still marked as staged must be whole enough to be finalized."""
    mark = state.read_staged(machine.sysroot.staged_file)
    assert (finalize_staged(machine.sysroot) is None) == (mark is None)


@pytest.mark.parametrize("stage", ["pull", "deploy"])
def test_a_full_disk(machines: dict[str, MockMachine], tmp_path: Path, stage: str) -> None:
    """The file size limit makes the kernel refuse what is larger than it, wherever it is written.

    Nothing is left, the old system is whole, and with room the retry succeeds.
    """
    machine = machines["fresh"].copied(tmp_path / "machine")
    [first] = machine.menu()
    big = bytes(range(256)) * 4000
    where = "usr/big" if stage == "pull" else "etc/big"
    machine.path.joinpath("images").mkdir()
    machine.image("big", ImageContent("9", extra={where: big}))
    target = parse_imgref(f"oci:{machine.path}/images/big:big")
    if stage == "deploy":
        # What is in the repository already isn't written again.
        with (
            Repository.open(machine.sysroot.repository) as repo,
            open_source(target.imgref) as source,
        ):
            pull(repo, source, reference="big", tag="kept")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(big) // 2, old[1]))
    try:
        with pytest.raises(BootcError) as caught:
            update.switch(machine.sysroot, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, previous)
    assert os.strerror(errno.EFBIG) in chain_text(caught.value)
    assert find_hint(caught.value) is not None
    assert ("the new deployment cannot be written" in str(caught.value)) == (stage == "deploy")
    assert not menu.has_staged(str(machine.esp))
    assert state.list_deployments(str(machine.root)) == [first]
    machine.check_whole()
    assert update.switch(machine.sysroot, target).staged is not None


def test_ctrl_c_stages_nothing(machines: dict[str, MockMachine], tmp_path: Path) -> None:
    class Impatient(Observer):
        def __init__(self, at: Stage | None) -> None:
            self._at = at

        def stage(self, stage: Stage) -> None:
            if stage is self._at:
                raise KeyboardInterrupt

        def report(self, event: Event) -> None:
            if self._at is None:
                raise KeyboardInterrupt

    for number, at in enumerate([None, Stage.PULLING, Stage.IMPORTING, *UPDATING[:-1]]):
        machine = machines["fresh"].copied(tmp_path / str(number))
        with pytest.raises(KeyboardInterrupt):
            update.upgrade(machine.sysroot, NOTHING, observer=Impatient(at))
        assert state.read_staged(machine.sysroot.staged_file) is None
        assert not menu.has_staged(str(machine.esp))
        assert state.list_deployments(str(machine.root)) == machine.menu()
        upgrade_to_the_end(machine)
