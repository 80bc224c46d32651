# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Replays against a model: what is safe is there, what is open is there as a whole or not at all,
each block is one that was once written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootc.errors import BootcError
from tests.writelogs import entry, write_log
from vmtests.blklog import Entry, Flag, open_log
from vmtests.replay import (
    SECTOR,
    TEAR,
    Fate,
    Point,
    open_replay,
    open_writes,
    plan_points,
    survivors,
)

BLOCKS = 8
SIZE = BLOCKS * TEAR
WRITE = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 4), st.sampled_from([0, 1, 2, 4]))


def make_log(path: Path, script: list[tuple[int, int, int]]) -> Path:
    """(block, blocks, flags) a write of the next letter; FLUSH has no blocks."""
    parts = []
    for number, (block, count, flags) in enumerate(script):
        count = min(count, BLOCKS - block)
        if flags == 1:
            parts.append(entry(0, flags=1))
        elif flags == 4:
            parts.append(entry(block * 8, flags=4, count=count * 8))
        else:
            parts.append(entry(block * 8, bytes([number + 1]) * (count * TEAR), flags))
    return write_log(path, *parts)


def blocks_of(image: bytes) -> list[int]:
    """Each block's letter; a block of several letters would be torn inside."""
    letters: list[int] = []
    for start in range(0, len(image), TEAR):
        block = set(image[start : start + TEAR])
        assert len(block) == 1
        letters += block
    return letters


def apply(state: list[int], one: Entry) -> None:
    letter = 0 if one.is_discard else one.index + 1
    for block in range(one.offset // TEAR, (one.offset + one.size) // TEAR):
        state[block] = letter


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(WRITE, max_size=12), seed=st.integers(0, 2**31), data=st.data())
def test_replay_is_what_a_disk_may_hold(
    tmp_path: Path, script: list[tuple[int, int, int]], seed: int, data: st.DataObject
) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"\xff" * SIZE)
    counts = sorted(data.draw(st.lists(st.integers(0, len(script)), max_size=4)))
    with (
        open_log(make_log(tmp_path / "log", script)) as log,
        open_replay(log, base, tmp_path) as replay,
    ):
        for count in counts:
            for fate in Fate:
                replay.make(Point(entries=count, seed=seed, fate=fate), tmp_path / "image")
                found = blocks_of((tmp_path / "image").read_bytes())
                check_model(log.entries[:count], fate, found)
    assert not (tmp_path / "safe.raw").exists()
    assert base.read_bytes() == b"\xff" * SIZE


def check_model(entries: tuple[Entry, ...], fate: Fate, found: list[int]) -> None:
    """Compare with all that was written up to here, in the log's order."""
    last = max((one.index for one in entries if one.is_flush), default=0)
    everything, safe = [0xFF] * BLOCKS, [0xFF] * BLOCKS
    possible: list[set[int]] = [set() for _ in range(BLOCKS)]
    for one in entries:
        apply(everything, one)
        fixed = one.index < last or Flag.FUA in one.flags
        if fixed:
            apply(safe, one)
        for block in range(one.offset // TEAR, (one.offset + one.size) // TEAR):
            letter = everything[block]
            possible[block] = {letter} if fixed else possible[block] | {letter}
    match fate:
        case Fate.KEPT:
            assert found == everything
        case Fate.LOST:
            assert found == safe
        case Fate.MIXED:
            for block, letter in enumerate(found):
                assert letter in possible[block] | {safe[block]}


SCRIPT = [(0, 2, 0), (2, 2, 0), (0, 1, 1), (0, 4, 0), (4, 4, 2), (1, 1, 4), (0, 1, 1), (7, 1, 0)]


def test_what_is_open(tmp_path: Path) -> None:
    with open_log(make_log(tmp_path / "log", SCRIPT)) as log:
        opened = [[one.index for one in open_writes(log.entries, count)] for count in range(9)]
    assert opened == [[], [0], [0, 1], [], [3], [3], [3, 5], [], [7]]


def test_flag_of_a_flush_on_a_write_makes_the_earlier_ones_safe(tmp_path: Path) -> None:
    """Linux logs a write with a flush before it as one entry; that write itself is still open."""
    path = write_log(
        tmp_path / "log", entry(0, b"a" * TEAR), entry(8, b"b" * TEAR, flags=int(Flag.FLUSH))
    )
    (tmp_path / "base").write_bytes(bytes(2 * TEAR))
    with open_log(path) as log, open_replay(log, tmp_path / "base", tmp_path) as replay:
        replay.make(Point(entries=2, seed=0, fate=Fate.LOST), tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == b"a" * TEAR + bytes(TEAR)


def test_a_seed_chooses_the_same_again_and_seeds_differ(tmp_path: Path) -> None:
    script = [(block % BLOCKS, 4, 0) for block in range(30)]
    with open_log(make_log(tmp_path / "log", script)) as log:
        chosen = {seed: survivors(log.entries, Point(entries=30, seed=seed)) for seed in range(20)}
        again = {seed: survivors(log.entries, Point(entries=30, seed=seed)) for seed in range(20)}
    assert chosen == again
    counts = {len(pieces) for pieces in chosen.values()}
    assert min(counts) < 15 < max(counts)
    torn = [piece for pieces in chosen.values() for piece in pieces if piece.size < 4 * TEAR]
    assert torn
    assert all(piece.size > 0 and piece.start % TEAR == 0 for piece in torn)


def test_a_write_that_is_no_block_is_torn_between_sectors(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", *(entry(9, b"a" * 3 * SECTOR) for _ in range(400)))
    with open_log(path) as log:
        pieces = survivors(log.entries, Point(entries=400, seed=3))
    places = {(piece.start // SECTOR, piece.size // SECTOR) for piece in pieces}
    assert places == {(0, 3), (0, 1), (0, 2), (1, 2), (2, 1)}
    assert all(piece.size % SECTOR == 0 for piece in pieces)


def test_a_sector_is_never_torn(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", *(entry(9, b"a" * SECTOR) for _ in range(50)))
    with open_log(path) as log:
        pieces = survivors(log.entries, Point(entries=50, seed=3))
    assert {(piece.start, piece.size) for piece in pieces} == {(0, SECTOR)}


def test_plans_are_repeatable_in_order_and_at_flushes(tmp_path: Path) -> None:
    script = [(number % BLOCKS, 1, 1 if number % 10 == 9 else 0) for number in range(200)]
    with open_log(make_log(tmp_path / "log", script)) as log:
        plan = plan_points(log.entries, 100, seed=7, first=50)
        assert plan == plan_points(log.entries, 100, seed=7, first=50)
        assert plan != plan_points(log.entries, 100, seed=8, first=50)
        with pytest.raises(BootcError, match="not in a log of 200"):
            plan_points(log.entries, 1, seed=7, last=201)
    assert [point.entries for point in plan] == sorted(point.entries for point in plan)
    assert all(50 <= point.entries <= 200 for point in plan)
    assert sum(point.entries % 10 == 9 for point in plan) >= 50
    assert {point.fate for point in plan} == set(Fate)


def test_points_go_forward_and_fit_the_disk(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(SIZE))
    (tmp_path / "small").write_bytes(bytes(TEAR))
    with open_log(make_log(tmp_path / "log", SCRIPT)) as log:
        with (
            pytest.raises(BootcError, match="writes up to 32768"),
            open_replay(log, tmp_path / "small", tmp_path),
        ):
            pass
        with open_replay(log, tmp_path / "base", tmp_path) as replay:
            replay.make(Point(entries=8, seed=0), tmp_path / "image")
            with pytest.raises(BootcError, match="rising order"):
                replay.make(Point(entries=1, seed=0), tmp_path / "image")
