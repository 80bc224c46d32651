# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Random lives of a machine against a model of a few lines: the status always equals the model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bootc.deploy import update
from bootc.deploy.cleanup import clean_up
from bootc.deploy.delete import delete_deployment
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.rollback import rollback
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError
from bootc.oci.reference import ImageReference, parse_imgref
from bootc.spec import BootEntry, BootOrder
from bootc.status import describe
from tests.sysroots import ImageContent, MockMachine

VERSIONS = ("1", "2", "3", "4")
KERNELS = {"1": b"old", "2": b"old", "3": b"new", "4": b"newer"}
SOURCES = ("one", "two")


class Life(RuleBasedStateMachine):
    """`menu`: versions in the menu; `published`: what each source offers; `staged`: (version,
    source, locked); `sources`: where the updates of each version that is deployed come from."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="bootc-life-"))
        self.machine = MockMachine(self.folder / "machine")
        self.ids: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.published: dict[str, str] = {}
        self.staged: tuple[str, str, bool] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def install(self) -> None:
        for source in SOURCES:
            self.publish(source, "1")
        self.ids["1"] = self.machine.install(self.reference("one").imgref)
        self.menu = ["1"]
        self.booted = "1"
        self.sources["1"] = "one"

    def reference(self, source: str) -> ImageReference:
        return parse_imgref(f"oci:{self.machine.path}/images/{source}:{source}")

    @rule(source=st.sampled_from(SOURCES), version=st.sampled_from(VERSIONS))
    def publish(self, source: str, version: str) -> None:
        content = ImageContent(version, kernel=KERNELS[version])
        self.machine.image(source, content)
        self.published[source] = version

    @property
    def followed(self) -> str:
        return self.staged[1] if self.staged else self.sources[self.booted]

    def stage(self, source: str, done: update.Outcome, *, locked: bool) -> None:
        version = self.published[source]
        assert done.staged is not None
        assert self.ids.setdefault(version, done.staged.id) == done.staged.id
        self.staged = (version, source, locked)

    @rule(download_only=st.booleans())
    def upgrade(self, download_only: bool) -> None:
        source = self.followed
        offered = self.published[source]
        options = UpgradeOptions(download_only=download_only)
        done = update.upgrade(self.machine.sysroot, options)
        if self.staged is not None and self.staged[0] == offered:
            assert done.changed == (self.staged[2] != download_only)
            self.staged = (offered, self.staged[1], download_only)
        elif offered in self.menu:
            assert not done.changed
        else:
            self.stage(source, done, locked=download_only)

    @rule()
    def check(self) -> None:
        done = update.upgrade(self.machine.sysroot, UpgradeOptions(check=True))
        available = self.published[self.followed] != self.booted
        assert done.lines[0].startswith("Update available" if available else "No changes")

    @rule()
    def from_downloaded(self) -> None:
        options = UpgradeOptions(from_downloaded=True)
        if self.staged is None:
            with pytest.raises(BootcError, match="No staged deployment found"):
                update.upgrade(self.machine.sysroot, options)
            return
        assert update.upgrade(self.machine.sysroot, options).changed == self.staged[2]
        self.staged = (*self.staged[:2], False)

    @rule(source=st.sampled_from(SOURCES))
    def switch(self, source: str) -> None:
        offered = self.published[source]
        target = self.reference(source)
        known = [*self.menu, *([self.staged[0]] if self.staged else [])]
        if source == self.followed:
            assert update.switch(self.machine.sysroot, target).lines == (update.UNCHANGED,)
        elif offered in known:
            with pytest.raises(BootcError, match="same fs-verity digest"):
                update.switch(self.machine.sysroot, target)
        else:
            self.stage(source, update.switch(self.machine.sysroot, target), locked=False)

    @rule()
    def roll_back(self) -> None:
        rest = [one for one in self.menu if one != self.booted]
        if not rest:
            with pytest.raises(BootcError, match="No rollback available"):
                rollback(self.machine.sysroot)
            return
        rollback(self.machine.sysroot)
        if self.menu[0] == self.booted:
            self.menu = [rest[0], self.booted, *rest[1:]]
        else:
            self.menu = [self.booted, *rest]
        self.staged = None

    @rule(place=st.integers(0, 3))
    def delete(self, place: int) -> None:
        version = self.menu[place % len(self.menu)]
        if version == self.booted:
            with pytest.raises(BootcError, match="Cannot delete the booted deployment"):
                delete_deployment(self.machine.sysroot, self.ids[version])
            return
        delete_deployment(self.machine.sysroot, self.ids[version])
        self.menu.remove(version)

    @precondition(lambda self: self.staged is not None)
    @rule()
    def delete_staged(self) -> None:
        assert self.staged is not None
        delete_deployment(self.machine.sysroot, self.ids[self.staged[0]])
        self.staged = None

    @rule()
    def shut_down_and_boot(self) -> None:
        done = finalize_staged(self.machine.sysroot)
        waits = self.staged is not None and not self.staged[2]
        assert (done is not None) == waits
        if waits:
            assert self.staged is not None
            version, source, _ = self.staged
            self.menu = [version, self.booted]
            self.sources[version] = source
        self.power_cut()

    @rule()
    def power_cut(self) -> None:
        self.staged = None
        self.booted = self.menu[0]
        assert self.machine.reboot() == self.ids[self.booted]

    @rule()
    def clean(self) -> None:
        clean_up(self.machine.sysroot)
        assert clean_up(self.machine.sysroot, dry_run=True).is_no_op

    @invariant()
    def status_is_the_model(self) -> None:
        host = describe(self.machine.sysroot, selinux=False)
        status = host.status
        rest = [self.ids[one] for one in self.menu if one != self.booted]
        assert verity(status.booted) == self.ids[self.booted]
        assert verity(status.rollback) == next(iter(rest), None)
        assert [verity(one) for one in status.others] == rest[1:]
        assert verity(status.staged) == (self.ids[self.staged[0]] if self.staged else None)
        if status.staged is not None and self.staged is not None:
            assert status.staged.download_only == self.staged[2]
        assert status.rollback_queued == (self.menu[0] != self.booted)
        order = BootOrder.ROLLBACK if status.rollback_queued else BootOrder.DEFAULT
        assert host.spec.boot_order is order
        assert host.spec.image == self.reference(self.followed)
        self.machine.check_whole()


def verity(entry: BootEntry | None) -> str | None:
    return entry.composefs.verity if entry is not None and entry.composefs is not None else None


def test_random_lives() -> None:
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=15,
            stateful_step_count=14,
            suppress_health_check=list(HealthCheck),
        ),
    )
