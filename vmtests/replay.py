# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a disk may hold after a power cut: a log of its writes, replayed to any point.

At a cut after the first `n` entries of a log, each of these writes is one of two kinds:

* *safe*: a later flush was done before the cut, or it was FUA. It is on the disk.
* *open*: it may be there, or not, or in part. Which are there is chosen by a seed: all (the order
  of the log), none (a cache that was lost), or any of them with a chance that is drawn too. Since
  any subset may be there, this is reordering as well: a cut in another order leaves a subset. An
  open write of several 4 KiB blocks may be torn between two of them, never inside one: disks keep
  a physical sector whole, and file systems' superblocks rely on it. A write that isn't made of such
  blocks (vfat's) may be torn between two sectors of 512 bytes. A write that overlaps another
  comes after it, as in the log. A discard leaves zeros, or what was there when it is dropped.

A log has completions, so a write that completed while a flush was under way counts as safe although
the disk needn't have seen it in time: a replay can miss a fault, it does not invent one.

`Replay` walks through points in rising order. It keeps one image with all safe writes, which are
applied once, and each point's image is a sparse copy of it plus the open writes that survive.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bootc import process
from bootc.errors import BootcError
from vmtests.blklog import Entry, Flag, WriteLog

TEAR, SECTOR = 4096, 512
"""Bytes that are written as a whole or not at all: by who writes blocks, and by who doesn't."""
_COPY_LIMIT = 300.0
_PIECE = 1 << 22


class Fate(StrEnum):
    """What becomes of the open writes of a point."""

    KEPT = "kept"
    LOST = "lost"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A cut after the first `entries` entries; `seed` decides about the open writes."""

    entries: int
    seed: int
    fate: Fate = Fate.MIXED

    def __str__(self) -> str:
        return f"{self.entries}:{self.fate}:{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an entry's write: `size` bytes from `start` on."""

    entry: Entry
    start: int
    size: int


def open_writes(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Those of the first `count` entries that no flush and no FUA had made safe."""
    found: list[Entry] = []
    for entry in reversed(entries[:count]):
        if entry.is_write and Flag.FUA not in entry.flags:
            found.append(entry)
        if entry.is_flush:
            # The flush came before this entry's own write.
            break
    return found[::-1]


def survivors(entries: Sequence[Entry], point: Point) -> list[Piece]:
    """The pieces of open writes that are on the disk after the cut at `point`, in their order."""
    pending = open_writes(entries, point.entries)
    match point.fate:
        case Fate.LOST:
            return []
        case Fate.KEPT:
            return [Piece(entry=entry, start=0, size=entry.size) for entry in pending]
        case Fate.MIXED:
            # A string seeds in the same way in every version of Python.
            choice = random.Random(f"{point.seed}:{point.entries}")
            chance = choice.choice((0.1, 0.5, 0.9))
            pieces = (_choose(entry, choice, chance) for entry in pending)
            return [piece for piece in pieces if piece is not None]


def _choose(entry: Entry, choice: random.Random, chance: float) -> Piece | None:
    """All of a write, none of it, or now and then its beginning or its end."""
    kept, torn = choice.random() < chance, choice.random() < 0.2
    unit = SECTOR if entry.offset % TEAR or entry.size % TEAR else TEAR
    cuts = range(entry.offset // unit + 1, (entry.offset + entry.size - 1) // unit + 1)
    if not torn or not cuts:
        return Piece(entry=entry, start=0, size=entry.size) if kept else None
    where = choice.choice(cuts) * unit - entry.offset
    if choice.random() < 0.5:
        return Piece(entry=entry, start=0, size=where)
    return Piece(entry=entry, start=where, size=entry.size - where)


def plan_points(
    entries: Sequence[Entry], count: int, *, seed: int, first: int = 0, last: int | None = None
) -> list[Point]:
    """`count` cuts in the first `first` to `last` entries, in rising order.

    Half of them are right before a flush, when the most is open, the others anywhere; six in ten
    lose some of the open writes, two all, two none. `seed` makes the same plan again.
    """
    end = len(entries) if last is None else last
    if not 0 <= first <= end <= len(entries):
        raise BootcError(f"entries {first} to {end} are not in a log of {len(entries)}")
    choice = random.Random(f"plan {seed}")
    flushes = [entry.index for entry in entries[first:end] if entry.is_flush]
    fates = (Fate.MIXED, Fate.MIXED, Fate.MIXED, Fate.LOST, Fate.KEPT)
    points = []
    for number in range(count):
        anywhere = number % 2 == 1 or not flushes
        where = choice.randint(first, end) if anywhere else choice.choice(flushes)
        points.append(Point(entries=where, seed=choice.getrandbits(31), fate=choice.choice(fates)))
    return sorted(points, key=lambda point: point.entries)


class Replay:
    """Makes the disk of one point after the other; see `open_replay`."""

    def __init__(self, log: WriteLog, image: Path) -> None:
        self._log = log
        self._image = image
        self._done = 0
        """Entries whose fate in the safe image is settled."""

    def make(self, point: Point, target: Path) -> None:
        """Write the disk of `point` as a sparse raw image to `target`."""
        if point.entries < self._done:
            raise BootcError("points are replayed in rising order")
        self._advance(point.entries)
        copy_sparse(self._image, target)
        entries = self._log.entries
        pieces = survivors(entries, point)
        pieces += [
            Piece(entry=entry, start=0, size=entry.size)
            for entry in entries[self._done : point.entries]
            if Flag.FUA in entry.flags and entry.is_write
        ]
        _apply(self._log, sorted(pieces, key=lambda piece: piece.entry.index), target)

    def _advance(self, count: int) -> None:
        """Apply what a flush among the first `count` entries has made safe."""
        entries = self._log.entries
        flushes = [entry.index for entry in entries[self._done : count] if entry.is_flush]
        if not flushes:
            return
        pieces = [
            Piece(entry=entry, start=0, size=entry.size)
            for entry in entries[self._done : flushes[-1]]
            if entry.is_write
        ]
        _apply(self._log, pieces, self._image)
        self._done = flushes[-1]


@contextmanager
def open_replay(log: WriteLog, base: Path, folder: Path) -> Iterator[Replay]:
    """A replay onto a copy of the raw image `base`, in `folder`; it is removed with the block."""
    if base.stat().st_size < log.span:
        raise BootcError(
            f"{base} has {base.stat().st_size} bytes, and the log writes up to {log.span}",
            hint="replay onto the disk that the machine was started with",
        )
    image = folder / "safe.raw"
    try:
        copy_sparse(base, image)
        yield Replay(log, image)
    finally:
        image.unlink(missing_ok=True)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file; its holes stay holes. Where the file system can, the blocks are shared."""
    argv = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    process.run(argv, timeout=_COPY_LIMIT)


def _apply(log: WriteLog, pieces: Sequence[Piece], image: Path) -> None:
    fd = os.open(image, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for piece in pieces:
            for start in range(piece.start, piece.start + piece.size, _PIECE):
                size = min(_PIECE, piece.start + piece.size - start)
                data = log.read(piece.entry, start, size)
                os.pwrite(fd, data, piece.entry.offset + start)
    finally:
        os.close(fd)
