# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Benchmarks: two commands side by side, judged by the ratio of their times.

    nox -s bench [-- --pairs N] [--only TEXT]

A row runs A B A B …, so that a change of the machine's mood falls on both; one unmeasured pair
warms the caches. The ratio is the median of the pairs' ratios A/B (below 1: A is faster), with its
smallest and largest beside it; the times are medians. A row whose tool is missing is a failure that
names it: the table never lacks a line in silence.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError, chain_text

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
DIGESTED = 256 * MIB
MIN_PAIRS = 5

_DIGEST = """
import sys
from bootc.composefs.digest import Algorithm, digest_fd
with open(sys.argv[1], "rb") as file:
    print(digest_fd(file.fileno(), Algorithm(sys.argv[2])).hex())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One command of a pair."""

    label: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Two commands; with `same_output` they have to print the same, or nothing was compared."""

    ours: Side
    theirs: Side
    same_output: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Seconds of the pairs of a row, in their order."""

    name: str
    row: Row
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))


def plan_rows(folder: Path) -> dict[str, Callable[[], Row]]:
    """The rows by name, each made (its input files in `folder`, too) only when it is its turn."""
    size = f"{DIGESTED // MIB} MiB"
    return {
        "start-up": _version_row,
        f"fs-verity sha256, {size}": lambda: _digest_row(folder, "sha256"),
        f"fs-verity sha512, {size}": lambda: _digest_row(folder, "sha512"),
    }


def _version_row() -> Row:
    entry = "import sys; from bootc.cli.main import entry; sys.exit(entry())"
    return Row(
        ours=Side(label="bootc --version", argv=(sys.executable, "-c", entry, "--version")),
        theirs=Side(label="python3 -c pass", argv=(sys.executable, "-c", "pass")),
    )


def _digest_row(folder: Path, algorithm: str) -> Row:
    hint = "apt-get install -y fsverity (Fedora: dnf install -y fsverity-utils)"
    tool = process.need_program("fsverity", hint=hint)
    file = folder / "random"
    if not file.exists():
        _fill(file, DIGESTED)
    return Row(
        ours=Side(label="digest_fd", argv=(sys.executable, "-c", _DIGEST, str(file), algorithm)),
        theirs=Side(
            label="fsverity digest",
            argv=(tool, "digest", "--compact", f"--hash-alg={algorithm}", str(file)),
        ),
        same_output=True,
    )


def _fill(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def measure(name: str, row: Row, *, pairs: int) -> Result:
    """Run the pairs, after one that is not counted."""
    _, ours = _timed(row.ours)
    _, theirs = _timed(row.theirs)
    if row.same_output and ours != theirs:
        raise BootcError(f"the two sides differ: {ours!r} and {theirs!r}")
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for side, times in zip((row.ours, row.theirs), seconds, strict=True):
            times.append(_timed(side)[0])
    return Result(name=name, row=row, ours=tuple(seconds[0]), theirs=tuple(seconds[1]))


def _timed(side: Side) -> tuple[float, str]:
    env = {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = process.run(side.argv, env=env, cwd="/")
    return time.perf_counter() - start, done.stdout


def table(results: Sequence[Result]) -> str:
    """The results as aligned text."""
    head = ("row", "A", "s", "B", "s", "A/B", "(range)", "pairs")
    lines = [head]
    for result in results:
        ratios = result.ratios
        lines.append(
            (
                result.name,
                result.row.ours.label,
                f"{statistics.median(result.ours):.3f}",
                result.row.theirs.label,
                f"{statistics.median(result.theirs):.3f}",
                f"{statistics.median(ratios):.2f}",
                f"({min(ratios):.2f}-{max(ratios):.2f})",
                str(len(ratios)),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _pairs(text: str) -> int:
    number = int(text)
    if number < MIN_PAIRS:
        raise argparse.ArgumentTypeError(f"a median needs at least {MIN_PAIRS} pairs")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Paired benchmarks, as a table.")
    parser.add_argument("--pairs", type=_pairs, default=7, help="pairs of each row (default: 7)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args(argv)
    results: list[Result] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bootc-bench-", dir="/var/tmp") as folder:
        for name, make in plan_rows(Path(folder)).items():
            if options.only not in name:
                continue
            try:
                results.append(measure(name, make(), pairs=options.pairs))
            except BootcError as error:
                hint = f" (try: {error.hint})" if error.hint else ""
                failures.append(f"bench: {name}: {chain_text(error)}{hint}")
    if results:
        print(table(results))
    elif not failures:
        failures.append(f"bench: no row's name contains {options.only!r}")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
