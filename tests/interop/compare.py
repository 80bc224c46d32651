# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Runs the comparisons with programs that nobody here wrote, and tells how each ended.

    nox -s interop -- composefs [--seed N] [--count N] [PROGRAM …]

A program is a module `compare_PROGRAM` here; each takes `--seed` and `--count` (see `tally.main`)
and fails, in one line that says how to get it, for what it needs and doesn't find: see `programs`.
All get the same seed, which is printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bootc import process
from bootc.errors import ProcessError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIMEOUT = 6 * 3600.0
COUNTS = {"c": 2000}
"""How many, where it isn't the program's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one program ended: its exit status (None: it ran out of time) and its seconds."""

    name: str
    status: int | None
    seconds: float


def program_names() -> list[str]:
    return sorted(path.stem.removeprefix("compare_") for path in HERE.glob("compare_*.py"))


def run_program(name: str, seed: int, count: int | None) -> Ended:
    """Run one; what it prints is printed."""
    argv = [sys.executable, "-m", f"tests.interop.compare_{name}", f"--seed={seed}"]
    if count is not None:
        argv.append(f"--count={count}")
    print(f"\n== {name}", flush=True)
    start = time.monotonic()
    try:
        status: int | None = process.run(
            argv, cwd=ROOT, timeout=TIMEOUT, check=False, capture=False
        ).status
    except ProcessError as error:
        print(error, file=sys.stderr)
        status = None
    return Ended(name=name, status=status, seconds=time.monotonic() - start)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nox -s interop -- composefs")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--count", type=int, help="how many, of each program")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(program_names()))
    options = parser.parse_args(argv)
    names: list[str] = options.programs or program_names()
    if unknown := set(names) - set(program_names()):
        raise SystemExit(
            f"interop: no program {min(unknown)!r}; there are {', '.join(program_names())}"
        )
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    print(f"interop: seed {seed}")
    ended = [run_program(name, seed, options.count or COUNTS.get(name)) for name in names]
    width = max(map(len, names))
    print(f"\n{'program'.ljust(width)}  seconds  result (seed {seed})")
    for each in ended:
        result = "same" if each.status == 0 else "DIFFERENT, or it could not be compared"
        print(f"{each.name.ljust(width)}  {each.seconds:7.0f}  {result}")
    return 0 if all(each.status == 0 for each in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
