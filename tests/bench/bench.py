# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Benchmarks: two commands side by side, judged by the ratio of their times.

    nox -s bench [-- --pairs N] [--only TEXT] [--without MODULE] [--tree FOLDER] [--json]

All rows but the machines' (`--without machine`) take about a quarter of an hour and 15 GB of room.
What a row found is said on stderr as soon as it is known; the table comes last. The rows are those
of the modules `rows_*.py` here. Each has

    def rows(setup: Setup) -> dict[str, Make]

whose values are called when it is their turn; `Setup` gives a scratch folder and a tree of at least
25,000 inodes. `frame` says what a row is.

Exit status 1, and a line on stderr that says why, for each row that can't run (a missing tool is
named, the table never lacks a line in silence) or that misses its target.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bootc.errors import BootcError, chain_text
from tests.bench.frame import Make, Result, measure, table
from tests.bench.sample import Setup

MIN_PAIRS = 5


def row_modules() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))


def plan_rows(setup: Setup, *, without: Sequence[str] = ()) -> dict[str, Make]:
    """The rows of all modules but `without` by name, in the order of the modules."""
    found: dict[str, Make] = {}
    for name in row_modules():
        if name.removeprefix("rows_") in without:
            continue
        rows: Callable[[Setup], dict[str, Make]]
        rows = importlib.import_module(f"tests.bench.{name}").rows
        for row, make in rows(setup).items():
            if row in found:
                raise BootcError(f"two rows are called {row!r}", hint=f"rename that in {name}")
            found[row] = make
    return found


def _pairs(text: str) -> int:
    number = int(text)
    if number < MIN_PAIRS:
        raise argparse.ArgumentTypeError(f"a median needs at least {MIN_PAIRS} pairs")
    return number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Paired benchmarks, as a table.")
    parser.add_argument("--pairs", type=_pairs, default=5, help="pairs of each row (default: 5)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[name.removeprefix("rows_") for name in row_modules()],
        help="leave out the rows of a module; may be given several times",
    )
    parser.add_argument("--tree", type=Path, help="a root file system (default: one is made)")
    parser.add_argument("--scratch", type=Path, default="/var/tmp", help="where files are made")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    results: list[Result] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bootc-bench-", dir=options.scratch) as folder:
        setup = Setup(folder=Path(folder), given=options.tree)
        everything = plan_rows(setup, without=options.without)
        planned = {name: make for name, make in everything.items() if options.only in name}
        if not planned:
            failures.append(f"no row's name contains {options.only!r}")
        for name, make in planned.items():
            if options.list:
                print(name)
                continue
            print(f"bench: {name} …", file=sys.stderr, flush=True)
            begin = time.monotonic()
            try:
                result = measure(name, make(), pairs=options.pairs)
            except (BootcError, OSError) as error:
                hint = (
                    f" (try: {error.hint})" if isinstance(error, BootcError) and error.hint else ""
                )
                failures.append(f"{name}: {chain_text(error)}{hint}")
                continue
            seconds = time.monotonic() - begin
            print(f"bench:   {result.summary}; {seconds:.0f} s", file=sys.stderr, flush=True)
            results.append(result)
            failures += [f"{name}: missed: {miss}" for miss in result.misses]
    if options.json:
        print(json.dumps([result.to_json() for result in results], indent=2))
    elif results:
        print(table(results))
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
