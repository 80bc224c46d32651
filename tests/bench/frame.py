# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a benchmark is: rows, the pairs of runs that measure them, and the table of the results.

A row has two sides that run in turns, A B A B …, so that a change of the machine's mood falls on
both. One unmeasured pair warms the caches. The ratio of a row is the median of its pairs' ratios
A/B. A side is a command; its value is the seconds from its start to its end, or what `value` reads
in its output (then the row names the unit).

Memory is the largest resident set of the command or of a child that it waited for, in MiB, as
wait4(2) tells it. What the kernel counts begins before the command is executed, with the size of
the process that starts it. So that isn't this one, but an interpreter that has imported nothing:
less than its 10 MiB can't be told.

A row without `theirs` is judged by its own value and memory alone.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bootc import process
from bootc.errors import BootcError, ProcessError

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
_STARTER = """
import os, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - start
with open(sys.argv[1], "w") as file:
    print(seconds, os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=file)
"""
TIMEOUT = 1800.0
"""Seconds that one run may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One command of a pair. `prepare` runs before every run of it, unmeasured."""

    label: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    value: Callable[[str], float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is compared, and what is demanded of it.

    `ratio_max` and `ratio_min` bound A/B, `value_max` the value of A, `rss_max` its memory in MiB.
    With `same_output` the sides have to print the same, or nothing was compared. `runs` is for what
    hardly varies, as memory: so many runs, and none before them to warm up.
    """

    ours: Side
    theirs: Side | None = None
    unit: str = "s"
    same_output: bool = False
    ratio_max: float | None = None
    ratio_min: float | None = None
    value_max: float | None = None
    rss_max: float | None = None
    runs: int | None = None

    @property
    def target(self) -> str:
        """The demands as the table shows them."""
        parts = [
            f"<= {self.ratio_max:g}x" if self.ratio_max is not None else "",
            f">= {self.ratio_min:g}x" if self.ratio_min is not None else "",
            f"<= {self.value_max:g} {self.unit}" if self.value_max is not None else "",
            f"<= {self.rss_max:g} MiB" if self.rss_max is not None else "",
        ]
        return ", ".join(part for part in parts if part) or "-"


Make = Callable[[], Row]
"""Makes a row, its input files too, when it is its turn. Raises `BootcError`: what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one side."""

    value: float
    rss: float
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The runs of a row, in their order."""

    name: str
    row: Row
    ours: tuple[Run, ...]
    theirs: tuple[Run, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        if not self.theirs:
            return ()
        return tuple(a.value / b.value for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def value(self) -> float:
        return statistics.median(run.value for run in self.ours)

    @property
    def rss(self) -> float:
        return max(run.rss for run in self.ours)

    @property
    def summary(self) -> str:
        """What was found, as one line."""
        ratio = ""
        if self.ratio is not None and self.row.theirs is not None:
            ratio = f", {self.ratio:.2f}x of {self.row.theirs.label}"
        found = f"{self.value:.3f} {self.row.unit}{ratio}, {self.rss:.0f} MiB"
        return f"{found} (target {self.row.target}) {self.verdict}".rstrip()

    @property
    def verdict(self) -> str:
        """What the table's last column says."""
        if self.misses:
            return "MISSED"
        return "met" if self.row.target != "-" else ""

    @property
    def misses(self) -> list[str]:
        """The demands that were not met, each with what was measured."""
        row, found = self.row, list[str]()
        ratio = self.ratio
        if ratio is not None and row.ratio_max is not None and ratio > row.ratio_max:
            found.append(f"{ratio:.2f}x, demanded <= {row.ratio_max:g}x")
        if ratio is not None and row.ratio_min is not None and ratio < row.ratio_min:
            found.append(f"{ratio:.2f}x, demanded >= {row.ratio_min:g}x")
        if row.value_max is not None and self.value > row.value_max:
            found.append(f"{self.value:.3f} {row.unit}, demanded <= {row.value_max:g}")
        if row.rss_max is not None and self.rss > row.rss_max:
            found.append(f"{self.rss:.0f} MiB, demanded <= {row.rss_max:g} MiB")
        return found

    def to_json(self) -> dict[str, object]:
        ratios = self.ratios
        return {
            "row": self.name,
            "ours": self.row.ours.label,
            "theirs": self.row.theirs.label if self.row.theirs else None,
            "unit": self.row.unit,
            "value": self.value,
            "value_theirs": statistics.median(r.value for r in self.theirs) if ratios else None,
            "rss_mib": self.rss,
            "rss_mib_theirs": max(r.rss for r in self.theirs) if ratios else None,
            "ratio": self.ratio,
            "ratios": list(ratios),
            "pairs": len(self.ours),
            "target": self.row.target,
            "verdict": self.verdict,
            "misses": self.misses,
        }


def measure(name: str, row: Row, *, pairs: int) -> Result:
    """Run the pairs, after one that is not counted. Raises `BootcError` when a side fails."""
    sides = [row.ours] if row.theirs is None else [row.ours, row.theirs]
    if row.runs is None:
        first = [run_side(side) for side in sides]
        if row.same_output and len({run.output for run in first}) != 1:
            raise BootcError(
                "the two sides differ: " + " and ".join(repr(r.output[:200]) for r in first)
            )
    runs: list[list[Run]] = [[], []]
    for _ in range(row.runs or pairs):
        for side, found in zip(sides, runs, strict=False):
            found.append(run_side(side))
    return Result(name=name, row=row, ours=tuple(runs[0]), theirs=tuple(runs[1]))


def run_side(side: Side) -> Run:
    """One run, measured."""
    if side.prepare is not None:
        side.prepare()
    env = {"PYTHONPATH": str(ROOT), **side.env}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.NamedTemporaryFile("r") as found,
    ):
        starter = (sys.executable, "-IS", "-c", _STARTER, found.name, *side.argv)
        with process.running(starter, env=env, cwd="/", stdout=out, stderr=err) as child:
            timer = threading.Timer(TIMEOUT, os.killpg, (child.pid, signal.SIGKILL))
            timer.start()
            try:
                code = child.wait()
            finally:
                timer.cancel()
        out.seek(0)
        err.seek(0)
        output = out.read().decode("utf-8", "replace")
        # Nothing was found of a program that is not there, or of one that had to be killed.
        numbers = found.read().split()
        if numbers:
            code = int(numbers[1])
        if code != 0:
            raise ProcessError(side.argv, code, err.read().decode("utf-8", "replace"))
    value = float(numbers[0]) if side.value is None else side.value(output)
    return Run(value=value, rss=int(numbers[2]) / 1024, output=output)


def in_process(call: str) -> None:
    """Run `MODULE:FUNCTION(ARGUMENTS)` of a module of `tests.bench` in a process of its own."""
    module, _, expression = call.partition(":")
    code = f"from pathlib import Path\nfrom tests.bench import {module}\n{module}.{expression}"
    env = {"PYTHONPATH": str(ROOT)}
    process.run([sys.executable, "-c", code], env=env, timeout=TIMEOUT)


def table(results: Sequence[Result]) -> str:
    """The results as aligned text."""
    head = ("row", "A", "A is", "MiB", "B", "B is", "A/B", "(range)", "pairs", "target", "")
    lines = [head]
    for result in results:
        row, ratios = result.row, result.ratios
        their = [run.value for run in result.theirs]
        lines.append(
            (
                result.name,
                row.ours.label,
                f"{result.value:.3f} {row.unit}",
                f"{result.rss:.0f}",
                row.theirs.label if row.theirs else "-",
                f"{statistics.median(their):.3f} {row.unit}" if ratios else "-",
                f"{result.ratio:.2f}" if ratios else "-",
                f"({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-",
                str(len(result.ours)),
                row.target,
                result.verdict,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
