# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Every point of a recorded update is judged: is the disk of that cut whole, and what boots next?

A point costs seconds (a copy of the disk, the file systems' checks, a read of all that is new), so
shares of points are judged by several processes; each has an image of the safe writes of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bootc.errors import BootcError
from vmtests.blklog import open_log
from vmtests.cuts import find_problems, next_deployment, object_names, recovered
from vmtests.replay import Point, open_replay

_SHARE = 20
"""Points that one process judges before it tells."""
_MOST_PROCESSES = 3
"""Each has some 1.5 GB of images, and these lie in memory where there is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A log, what its disk was before, and which entries the update made.

    `begin` and `staged` count entries: before the update, and when all was staged. `old` and `new`
    are deployments.
    """

    log: Path
    base: Path
    begin: int
    staged: int
    old: str
    new: str


@dataclass(slots=True)
class Judged:
    """What was seen of some points; `notes` counts the kinds of what the checks repaired."""

    points: int = 0
    failed: list[str] = field(default_factory=list)
    boots: Counter[str | None] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Judged) -> None:
        self.points += other.points
        self.failed += other.failed
        self.boots += other.boots
        self.notes += other.notes


def known_objects(recording: Recording, folder: Path) -> frozenset[str]:
    """The objects of the disk before, all sound; raises `BootcError` when it is not."""
    disk = folder / "before.raw"
    shutil.copyfile(recording.base, disk)
    with recovered(disk, folder / "before") as found:
        problems = find_problems(found.sysroot, unsealed=found.unsealed)
        if problems:
            raise BootcError(f"the disk is not whole before any cut: {'; '.join(problems)}")
        names = object_names(found.sysroot)
    disk.unlink()
    return names


def judge(
    recording: Recording, point: Point, disk: Path, folder: Path, known: frozenset[str]
) -> Judged:
    """Look at the disk of a point."""
    judged = Judged(points=1)
    try:
        with recovered(disk, folder) as found:
            problems = find_problems(found.sysroot, known=known, unsealed=found.unsealed)
            following = next_deployment(found.sysroot)
    except BootcError as error:
        judged.failed.append(f"point {point}: {error}")
        return judged
    # Staging alone must not change what boots.
    allowed = {recording.old} | ({recording.new} if point.entries > recording.staged else set())
    if following not in allowed:
        problems.append(f"boots {following}")
    judged.failed += [f"point {point}: {line}" for line in problems]
    judged.boots[following] += 1
    judged.notes.update({re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "N", note) for note in found.notes})
    return judged


def judge_all(
    recording: Recording, points: Sequence[Point], folder: Path, known: frozenset[str]
) -> Judged:
    """Replay to points, which are in rising order, and look at each; `folder` is for our use."""
    total = Judged()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        log = stack.enter_context(open_log(recording.log))
        replay = stack.enter_context(open_replay(log, recording.base, scratch))
        disk = scratch / "point.raw"
        for point in points:
            replay.make(point, disk)
            total.add(judge(recording, point, disk, scratch / "files", known))
    return total


def judge_shares(
    recording: Recording, points: Sequence[Point], folder: Path, known: frozenset[str]
) -> Iterator[Judged]:
    """`judge_all` by a process for each CPU; yields what was seen of each share, as they end."""
    shares = [points[start : start + _SHARE] for start in range(0, len(points), _SHARE)]
    count = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)), len(shares))
    # Spawned: a fork would copy the threads' locks of libvirt, paramiko and pytest.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=count, mp_context=context) as pool:
        waiting = [pool.submit(judge_all, recording, share, folder, known) for share in shares]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)
