# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Points of a recorded update are judged alike by one process and in shares by several."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.diskbuild import MIB, ROOT_START, make_disk
from tests.sysroots import ImageContent, MockMachine
from tests.writelogs import entry, write_log
from vmtests import judging
from vmtests.judging import Recording, judge_all, judge_shares, known_objects
from vmtests.replay import Fate, Point

pytestmark = pytest.mark.root

_SECTOR = 512
_FLUSH = 1
_GOOD, _LOST = 4, 3


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Writes behind the last partition, then one that wipes the root's superblock."""
    machine = MockMachine(tmp_path / "machine")
    installed = machine.install(machine.image("1", ImageContent("1")))
    base = tmp_path / "base.raw"
    make_disk(machine, base)
    behind = 105 * MIB // _SECTOR
    harmless = [entry(behind + 8 * number, b"x" * 4096) for number in range(_GOOD)]
    wiped = entry(ROOT_START // _SECTOR, bytes(64 << 10))
    log = write_log(tmp_path / "log", *harmless, entry(0, flags=_FLUSH), wiped)
    return Recording(log=log, base=base, begin=0, staged=_GOOD, old=installed, new="new")


def without_device(line: str) -> str:
    return re.sub(r"/dev/loop\d+", "DEVICE", line)


def test_shares_find_what_one_process_finds(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    known = known_objects(recording, tmp_path)
    points = [Point(entries=number, seed=number) for number in range(_GOOD)]
    points += [Point(entries=_GOOD + 2, seed=seed, fate=Fate.KEPT) for seed in range(_LOST)]
    alone = judge_all(recording, points, folder, known)
    monkeypatch.setattr(judging, "_SHARE", 2)
    shared = list(judge_shares(recording, points, folder, known))

    assert sorted(one.points for one in shared) == [1, 2, 2, 2]
    assert alone.points == len(points)
    assert alone.boots == sum((one.boots for one in shared), Counter()) == {recording.old: _GOOD}
    failed = [line for one in shared for line in one.failed]
    assert sorted(map(without_device, failed)) == sorted(map(without_device, alone.failed))
    assert len(failed) == _LOST
    assert list(folder.iterdir()) == []
