# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Power cuts during an upgrade: what was whole before, or what is new, and never anything else.

*Live*: QEMU is killed at a point of pull, stage, gc or finalize, or at any time; the disk is looked
at without booting it, then the machine boots from it, and the next upgrade succeeds. POWER_CUTS
says how many (3), POWER_CUT_SEED makes a run again.

*Recorded*: one upgrade and its finalizing run on a disk whose writes are logged. The log is
replayed to POWER_CUT_POINTS points (40); each is recovered and looked at without booting it, and
POWER_CUT_BOOTS of them (1) are booted. Needs root, a loop device, e2fsprogs, dosfstools, mtools.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bootc.errors import BootcError, ProcessError
from vmtests import paths
from vmtests.blklog import Entry, Flag, WriteLog, count_entries, open_log
from vmtests.cuts import find_problems, next_deployment, recovered
from vmtests.domain import DiskFormat
from vmtests.judging import Judged, Recording, judge, judge_shares, known_objects
from vmtests.machine import Machine
from vmtests.options import BcvkInstallOpts
from vmtests.qcow2 import convert_to_raw, make_qcow2
from vmtests.replay import Fate, Point, open_replay, plan_points
from vmtests.session import open_session
from vmtests.updates import (
    UPGRADE_LIMIT,
    Updates,
    deployment_of,
    manifest_of,
    open_updates,
    pull_plug,
    read_status,
)

pytestmark = pytest.mark.vm
_log = logging.getLogger(__name__)

CUTS = int(os.environ.get("POWER_CUTS", "3"))
POINTS = int(os.environ.get("POWER_CUT_POINTS", "40"))
BOOTS = int(os.environ.get("POWER_CUT_BOOTS", "1"))
SEED = int(os.environ.get("POWER_CUT_SEED", str(time.time_ns() % 1_000_000)))

PHASES = {
    "pull": b"pull docker://",
    "image": b"write the composefs image",
    "stage": b"write the new deployment",
    "gc": b"Staged ",
}
"""A phase of `bootc upgrade`, and what is said when it begins."""
FINALIZE, ANY = "finalize", "any"
_CHECKS = "bootc internals fsck && bootc internals composefs-gc --dry-run"


@pytest.fixture(scope="module")
def updates() -> Iterator[Updates]:
    logging.getLogger().setLevel(logging.INFO)
    with open_session(BcvkInstallOpts.from_env()) as session:
        scratch = paths.MACHINES / session.name
        try:
            with open_updates(session, scratch) as opened:
                yield opened
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder for images of whole disks that live for seconds: in memory, if there is room."""
    memory = Path("/dev/shm")
    free = os.statvfs(memory) if memory.is_dir() else None
    room = free is not None and free.f_bavail * free.f_frsize > 6 << 30
    with tempfile.TemporaryDirectory(prefix="cuts-", dir=memory if room else None) as folder:
        yield Path(folder)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints also when pytest keeps what passes to itself: a seed must not get lost."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    say("")
    return say


# -- Live


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """When the power goes: `delay` seconds after the phase began."""

    phase: str
    delay: float


def plan_cuts(count: int, seed: int) -> list[Cut]:
    """Every phase in turn, and times that are drawn anew for each seed."""
    choice = random.Random(seed)
    phases = [FINALIZE, *PHASES, ANY]
    choice.shuffle(phases)
    longest = {FINALIZE: 20.0, ANY: 40.0, "pull": 4.0, "image": 6.0, "stage": 4.0, "gc": 2.0}
    names = [phases[number % len(phases)] for number in range(count)]
    return [Cut(phase=name, delay=round(choice.uniform(0, longest[name]), 3)) for name in names]


@dataclass(slots=True)
class _Trigger:
    """Pulls the plug `delay` seconds after `mark` was said (at once, when there is no mark)."""

    machine: Machine
    mark: bytes | None
    delay: float
    said: bytes = b""
    timer: threading.Timer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        with self.lock:
            if self.timer is None:
                self.timer = threading.Timer(self.delay, self._fire)
                self.timer.start()

    def _fire(self) -> None:
        process = self.machine.lease.qemu
        assert process is not None
        with suppress(ProcessLookupError):
            os.kill(process.pid, 9)

    def __call__(self, data: bytes) -> None:
        self.said += data
        if self.mark is not None and self.mark in self.said:
            self.start()

    def finish(self) -> None:
        """Whatever came of it: the power is off afterwards."""
        if self.timer is not None:
            self.timer.join()
        pull_plug(self.machine)


def cut_upgrade(machine: Machine, cut: Cut) -> str:
    """Run `bootc upgrade` and cut; returns what it said."""
    trigger = _Trigger(machine, PHASES.get(cut.phase), cut.delay)
    if cut.phase == ANY:
        trigger.start()
    try:
        # A command that the cut ended has failed, or its connection is gone.
        with suppress(BootcError, OSError, EOFError):
            machine.run("bootc upgrade", timeout=UPGRADE_LIMIT, check=False, on_output=trigger)
    finally:
        trigger.finish()
    return trigger.said.decode(errors="replace")


def cut_shutdown(machine: Machine, cut: Cut) -> None:
    """Shut down, which finalizes what is staged, and cut."""
    machine.run("systemctl reboot", check=False)
    trigger = _Trigger(machine, None, cut.delay)
    trigger.start()
    trigger.finish()


def upgrade(machine: Machine) -> str | None:
    """A whole upgrade; the deployment that is staged then. A failure tells what was said."""
    try:
        machine.run("bootc upgrade", timeout=UPGRADE_LIMIT)
    except ProcessError as error:
        raise AssertionError(f"the upgrade fails: {error}\n{error.stderr}") from error
    return deployment_of(read_status(machine), "staged")


def look_at_disk(updates: Updates, allowed: set[str]) -> str | None:
    """The disk as the cut left it, without booting it; returns what boots next."""
    with fast_folder() as folder:
        convert_to_raw(updates.disk, folder / "disk.raw")
        with recovered(folder / "disk.raw", folder / "files") as found:
            assert find_problems(found.sysroot, unsealed=found.unsealed) == []
            following = next_deployment(found.sysroot)
    assert following in allowed
    return following


def look_at_machine(machine: Machine, expected: str | None) -> None:
    """After the boot: the deployment that the disk said, nothing staged, all sound."""
    status = read_status(machine)
    assert deployment_of(status, "booted") == expected
    assert deployment_of(status, "staged") is None
    machine.run(_CHECKS, timeout=UPGRADE_LIMIT)


def test_cut_at_any_time_leaves_the_old_or_the_new_system(
    updates: Updates, tell: Callable[[str], None]
) -> None:
    tell(f"POWER_CUT_SEED={SEED} POWER_CUTS={CUTS}")
    with updates.boot() as machine:
        booted = deployment_of(read_status(machine), "booted")
        updates.publish()
        machine.run(f"bootc switch {updates.reference}", timeout=UPGRADE_LIMIT)
        machine.reboot()
        previous, booted = booted, deployment_of(read_status(machine), "booted")
        assert booted != previous
        machine.power_off()
    assert booted is not None
    for number, cut in enumerate(plan_cuts(CUTS, SEED)):
        begin = time.monotonic()
        with updates.boot() as machine:
            look_at_machine(machine, booted)
            allowed = {booted}
            updates.publish()
            if cut.phase == FINALIZE:
                staged = upgrade(machine)
                assert staged is not None
                allowed.add(staged)
                cut_shutdown(machine, cut)
            else:
                cut_upgrade(machine, cut)
        following = look_at_disk(updates, allowed)
        assert following is not None
        took, told = time.monotonic() - begin, "new" if following != booted else "old"
        tell(f"cut {number}: {cut.phase} + {cut.delay} s: {told} system ({took:.0f} s)")
        booted = following
    with updates.boot() as machine:
        look_at_machine(machine, booted)
        digest = updates.publish()
        staged = upgrade(machine)
        assert staged is not None
        machine.reboot()
        status = read_status(machine)
        assert deployment_of(status, "booted") == staged
        assert manifest_of(status, "booted") == digest
        machine.run(_CHECKS, timeout=UPGRADE_LIMIT)


# -- Recorded


def record(updates: Updates, folder: Path) -> Recording:
    """Boot the installed machine, upgrade it, shut it down, all with the log on."""
    log = folder / "writes.log"
    log.touch()
    updates.publish()
    base = folder / "base.raw"
    convert_to_raw(updates.spec().disks[0].path, base)
    with updates.boot(updates.spec(write_log=log)) as machine:
        old = deployment_of(read_status(machine), "booted")
        machine.run("sync")
        begin = count_entries(log)
        machine.run(f"bootc switch {updates.reference}", timeout=UPGRADE_LIMIT)
        new = deployment_of(read_status(machine), "staged")
        machine.run("sync")
        staged = count_entries(log)
        machine.power_off()
    assert old is not None
    assert new is not None
    return Recording(log=log, base=base, begin=begin, staged=staged, old=old, new=new)


def boot_point(updates: Updates, recording: Recording, disk: Path, folder: Path) -> None:
    """Boot a replayed disk as the cut left it; then the next upgrade must succeed."""
    overlay = folder / "boot.qcow2"
    overlay.unlink(missing_ok=True)
    make_qcow2(overlay, backing=disk, backing_format=DiskFormat.RAW)
    spec = updates.spec()
    disks = tuple(replace(one, path=overlay) for one in spec.disks)
    with updates.boot(replace(spec, disks=disks)) as machine:
        booted = deployment_of(read_status(machine), "booted")
        assert booted in (recording.old, recording.new)
        look_at_machine(machine, booted)
        if booted == recording.old:
            machine.run(f"bootc switch {updates.reference}", timeout=UPGRADE_LIMIT)
            assert deployment_of(read_status(machine), "staged") == recording.new
            machine.reboot()
            look_at_machine(machine, recording.new)


@pytest.fixture
def fresh(updates: Updates, tmp_path: Path) -> Updates:
    """The scene with a machine that was not started yet."""
    return updates.fresh(tmp_path / "machine")


def test_every_replayed_point_is_whole(fresh: Updates, tell: Callable[[str], None]) -> None:
    tell(f"POWER_CUT_SEED={SEED} POWER_CUT_POINTS={POINTS} POWER_CUT_BOOTS={BOOTS}")
    total = Judged()
    with fast_folder() as folder:
        recording = record(fresh, folder)
        known = known_objects(recording, folder)
        begin = time.monotonic()
        with open_log(recording.log) as log:
            tell(
                f"{len(log.entries)} entries, {recording.log.stat().st_size >> 20} MiB: "
                f"staging {recording.begin} to {recording.staged}, then the shutdown"
            )
            points = plan(log.entries, recording)
            for judged in judge_shares(recording, points, folder, known):
                total.add(judged)
                tell(f"{total.points} of {len(points)}: {time.monotonic() - begin:.0f} s")
            boot_some(fresh, recording, log, points, folder)
            unflushed = losses_without_flushes(log, recording, folder, known)
    old, new = total.boots[recording.old], total.boots[recording.new]
    tell(f"{len(points)} points in {time.monotonic() - begin:.0f} s: {old} boot old, {new} new")
    for note, count in total.notes.most_common(12):
        tell(f"  {count} times: {note}")
    assert total.failed == []
    assert total.points == len(points)
    assert old
    assert new
    assert unflushed, "a disk that ignores flushes should lose something, or nothing is tested"


def boot_some(
    updates: Updates,
    recording: Recording,
    log: WriteLog,
    points: Sequence[Point],
    folder: Path,
) -> None:
    """BOOTS of the points, each replayed again and booted."""
    chosen = sorted(random.Random(SEED).sample(range(len(points)), min(BOOTS, len(points))))
    disk = folder / "booted.raw"
    with open_replay(log, recording.base, folder) as replay:
        for number in chosen:
            replay.make(points[number], disk)
            boot_point(updates, recording, disk, folder)
    disk.unlink(missing_ok=True)


def losses_without_flushes(
    log: WriteLog, recording: Recording, folder: Path, known: frozenset[str]
) -> list[str]:
    """The control: the same writes on a disk that never flushes, cut when all is staged."""
    entries = tuple(
        replace(one, flags=one.flags & ~Flag.FLUSH) if one.index > recording.begin else one
        for one in log.entries
    )
    disk = folder / "unflushed.raw"
    failed: list[str] = []
    with open_replay(replace(log, entries=entries), recording.base, folder) as replay:
        for seed in range(3):
            point = Point(entries=recording.staged, seed=seed)
            replay.make(point, disk)
            failed += judge(recording, point, disk, folder / "files", known).failed
    return failed


def plan(entries: Sequence[Entry], recording: Recording) -> list[Point]:
    """Half of the points while it is staged, half at the shutdown, the last one after all."""
    during = plan_points(
        entries, POINTS // 2, seed=SEED, first=recording.begin, last=recording.staged
    )
    after = plan_points(entries, POINTS - POINTS // 2 - 1, seed=SEED, first=recording.staged)
    return [*during, *after, Point(entries=len(entries), seed=SEED, fate=Fate.KEPT)]
