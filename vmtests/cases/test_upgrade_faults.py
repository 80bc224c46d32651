# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Upgrades on a bad day: registries that fail, disks that are full, and SIGKILL.

One machine, never rebooted: after each fault its status tells what it told before, the same command
fails with one line of error and one of advice, and once the fault is gone the upgrade succeeds.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vmtests import paths
from vmtests.machine import Machine
from vmtests.options import BcvkInstallOpts
from vmtests.registry import Fault, FaultKind, On
from vmtests.session import open_session
from vmtests.updates import (
    UPGRADE_LIMIT,
    Updates,
    deployment_of,
    manifest_of,
    open_updates,
    read_status,
)

pytestmark = pytest.mark.vm

SEED = int(os.environ.get("POWER_CUT_SEED", str(time.time_ns() % 1_000_000)))
KILLS = int(os.environ.get("POWER_CUTS", "3"))
_STALL_PATIENCE = 15


@dataclass(slots=True, kw_only=True)
class Scene:
    updates: Updates
    machine: Machine

    def upgrade(self) -> tuple[int, str]:
        """Exit status and stderr of `bootc upgrade`."""
        answer = self.machine.run("bootc upgrade", timeout=UPGRADE_LIMIT, check=False)
        return answer.status, answer.stderr

    def state(self) -> tuple[str | None, str | None]:
        """What is booted and what is staged."""
        status = read_status(self.machine)
        return deployment_of(status, "booted"), deployment_of(status, "staged")

    def check_upgrade(self, digest: str) -> None:
        """The upgrade succeeds and stages this manifest, and all is sound."""
        status, said = self.upgrade()
        assert status == 0, said
        assert manifest_of(read_status(self.machine), "staged") == digest
        self.machine.run("bootc internals fsck", timeout=UPGRADE_LIMIT)

    def blob_bytes(self) -> int:
        return self.updates.registry.moved_bytes()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    logging.getLogger().setLevel(logging.INFO)
    with open_session(BcvkInstallOpts.from_env()) as session:
        scratch = paths.MACHINES / session.name
        try:
            with open_updates(session, scratch) as updates, updates.boot() as machine:
                updates.publish()
                machine.run(f"bootc switch {updates.reference}", timeout=UPGRADE_LIMIT)
                yield Scene(updates=updates, machine=machine)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_faults_left(scene: Scene) -> Iterator[None]:
    scene.updates.registry.faults = ()
    yield
    scene.updates.registry.faults = ()
    scene.machine.run("rm -f /var/filler; umount -q /run/filler || true")


def check_refusal(said: str) -> None:
    """One line of error, the last but one or the last, with a hint; no traceback."""
    lines = said.strip().splitlines()
    assert "Traceback" not in said
    assert [line for line in lines if line.startswith("error: ")] == [
        line for line in lines[-2:] if line.startswith("error: ")
    ]
    assert any(line.startswith("error: ") for line in lines[-2:]), said


FAULTS = {
    "401": Fault(kind=FaultKind.UNAUTHORIZED),
    "404": Fault(kind=FaultKind.NOT_FOUND),
    "502": Fault(kind=FaultKind.BAD_GATEWAY),
    "502-blobs": Fault(kind=FaultKind.BAD_GATEWAY, on=On.BLOBS),
    "truncated": Fault(kind=FaultKind.TRUNCATE, on=On.BLOBS, at=100_000),
    "wrong": Fault(kind=FaultKind.WRONG_CONTENT, on=On.BLOBS, at=100_000),
    "wrong-manifest": Fault(kind=FaultKind.WRONG_CONTENT, on=On.MANIFESTS, at=30),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_the_registry_is_told_and_changes_nothing(scene: Scene, name: str) -> None:
    digest = scene.updates.publish()
    before = scene.state()
    scene.updates.registry.faults = (FAULTS[name],)
    status, said = scene.upgrade()
    assert status == 1, said
    check_refusal(said)
    assert scene.state() == before
    scene.updates.registry.faults = ()
    scene.check_upgrade(digest)


@pytest.mark.parametrize("kind", [FaultKind.TOO_MANY, FaultKind.TOKEN])
def test_what_a_client_can_get_over_is_got_over(scene: Scene, kind: FaultKind) -> None:
    digest = scene.updates.publish()
    times = 1 if kind is FaultKind.TOO_MANY else None
    scene.updates.registry.faults = (Fault(kind=kind, times=times),)
    scene.check_upgrade(digest)


def test_registry_that_stalls_can_be_interrupted(scene: Scene) -> None:
    digest = scene.updates.publish()
    before = scene.state()
    scene.updates.registry.faults = (Fault(kind=FaultKind.STALL, on=On.BLOBS, at=100_000),)
    command = f"timeout --signal=INT {_STALL_PATIENCE} bootc upgrade"
    answer = scene.machine.run(command, timeout=UPGRADE_LIMIT, check=False)
    assert answer.status != 0
    assert "Traceback" not in answer.stderr
    assert scene.state() == before
    scene.updates.registry.faults = ()
    scene.check_upgrade(digest)


def test_tag_that_moves_during_the_pull_gives_one_of_the_two_images(scene: Scene) -> None:
    first = scene.updates.publish()
    registry = scene.updates.registry
    second = scene.updates.publish()
    registry.faults = (Fault(kind=FaultKind.SWAP, on=On.MANIFESTS, digest=first),)
    status, said = scene.upgrade()
    assert status == 0, said
    assert manifest_of(read_status(scene.machine), "staged") in (first, second)
    scene.machine.run("bootc internals fsck", timeout=UPGRADE_LIMIT)
    registry.faults = ()
    third = scene.updates.publish()
    scene.check_upgrade(third)


def test_only_the_layer_that_changed_is_moved(scene: Scene) -> None:
    digest = scene.updates.publish()
    scene.updates.registry.forget()
    scene.check_upgrade(digest)
    sizes = scene.updates.layer_sizes()
    assert sizes[-1] <= scene.blob_bytes() < sizes[-1] + (1 << 20) + min(sizes[:-1])


def test_registry_is_told_who_asks_as_far_as_skopeo_passes_it_on(scene: Scene) -> None:
    scene.updates.registry.forget()
    scene.machine.run("bootc upgrade --check", timeout=UPGRADE_LIMIT)
    said = scene.machine.run("skopeo --version", timeout=60).stdout
    version = [int(part) for part in re.findall(r"\d+", said)[:2]]
    named = {agent.partition("/")[0] for agent in scene.updates.registry.agents()}
    assert named == {"bootc" if version >= [1, 19] else "skopeo"}


def test_full_root_leaves_the_old_system_whole(scene: Scene) -> None:
    digest = scene.updates.publish()
    before = scene.state()
    scene.machine.run(
        "free=$(stat -f -c '%a * %S' /var); fallocate -l $(( $free - 262144 )) /var/filler"
    )
    status, said = scene.upgrade()
    assert status == 1, said
    check_refusal(said)
    assert "space" in said
    assert scene.state() == before
    scene.machine.run("rm /var/filler; sync")
    scene.check_upgrade(digest)


def test_full_esp_leaves_the_old_system_whole(scene: Scene) -> None:
    # Every other update has a kernel of its own, and only that is written to the ESP. One that is
    # staged already would make room when it goes.
    digest = scene.updates.publish()
    if scene.updates.number % 2:
        digest = scene.updates.publish()
    scene.check_upgrade(digest)
    digest = scene.updates.publish()
    before = scene.state()
    scene.machine.run(
        "mkdir -p /run/filler && mount /dev/disk/by-partlabel/EFI-SYSTEM /run/filler"
        " && free=$(stat -f -c '%a * %S' /run/filler)"
        " && cd /run/filler && touch filler"
        " && fallocate -n -l $(( $free - 1048576 )) filler && sync"
    )
    status, said = scene.upgrade()
    assert status == 1, said
    check_refusal(said)
    # What was staged before stays so.
    assert scene.state() == before
    scene.machine.run("rm /run/filler/filler; umount /run/filler; sync")
    scene.check_upgrade(digest)
    scene.machine.run("bootc internals fsck", timeout=UPGRADE_LIMIT)


def test_killed_at_any_time_the_next_upgrade_succeeds(scene: Scene) -> None:
    print(f"\nPOWER_CUT_SEED={SEED} POWER_CUTS={KILLS}")
    choice = random.Random(SEED)
    booted, _ = scene.state()
    for _ in range(KILLS):
        digest = scene.updates.publish()
        seconds = round(choice.uniform(0.5, 15.0), 2)
        answer = scene.machine.run(
            f"timeout --signal=KILL {seconds} bootc upgrade", timeout=UPGRADE_LIMIT, check=False
        )
        told = "done before" if answer.status == 0 else "killed"
        print(f"SIGKILL after {seconds} s: {told}")
        assert scene.state()[0] == booted
        scene.machine.run("bootc internals fsck", timeout=UPGRADE_LIMIT)
        if answer.status != 0:
            scene.check_upgrade(digest)
