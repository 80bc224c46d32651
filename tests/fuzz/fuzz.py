# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Feeds the readers with bad data: images, dump files, split streams, tars, meta.json.

    nox -s fuzz [-- --runs N] [--seed S] [--engine auto|atheris|own] [--jobs N] [TARGET …]
    nox -s fuzz -- --input FILE TARGET        one input again

Each target has a process of its own, with 1 GiB of address space more than it began with and 5
seconds an input. Only a `BootcError` may come out of a reader, and what it accepts must be the same
when it is written and read again. The first finding ends a target: its input is kept below
`.bootc/fuzz/TARGET`, and the way to repeat it is printed. `engine` says what the engines do; `auto`
takes atheris where it can be imported. The seed is printed; with our own engine it repeats a run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bootc import process
from bootc.errors import BootcError, chain_text
from tests.fuzz.engine import (
    FindingError,
    Outcome,
    limit_process,
    load_target,
    run_atheris,
    run_own,
    target_names,
)

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / ".bootc" / "fuzz"
RUNS = 1_000_000
TIMEOUT = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a target's process ended; `finding` is the end of what it said, with the traceback."""

    name: str
    outcome: Outcome
    finding: str = ""


def run_target(name: str, engine: str, runs: int, seed: int) -> Report:
    """Run one target in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bootc-fuzz-") as scratch:
        report = Path(scratch) / "report"
        argv = [sys.executable, "-m", "tests.fuzz.fuzz", f"--runs={runs}", f"--seed={seed}"]
        argv += [f"--engine={engine}", f"--child={report}", name]
        done = process.run(argv, cwd=ROOT, timeout=TIMEOUT, check=False)
        fields = json.loads(report.read_text()) if report.exists() else {}
    outcome = Outcome(**fields)
    finding = ""
    if done.status != 0 or outcome.runs < runs:
        said = (done.stderr + done.stdout).strip().splitlines()[-40:]
        finding = "\n".join([*said, f"(exit status {done.status}, {outcome.runs} runs)"])
    return Report(name=name, outcome=outcome, finding=finding)


def _child(name: str, engine: str, runs: int, seed: int, report: Path) -> int:
    folder = FINDINGS / name
    folder.mkdir(parents=True, exist_ok=True)
    if engine == "atheris":
        run_atheris(name, runs=runs, seed=seed, folder=folder, report=report)
    target = load_target(name)
    limit_process()
    try:
        outcome = run_own(target, runs=runs, seed=seed)
    except FindingError as error:
        kept = folder / f"finding-{seed}"
        kept.write_bytes(error.data)
        traceback.print_exception(error)
        print(f"kept as {kept}", file=sys.stderr)
        return 1
    report.write_text(json.dumps(asdict(outcome)))
    return 0


def _again(name: str, path: Path) -> int:
    """Feed one input, with the traceback if it is a finding."""
    target = load_target(name)
    limit_process()
    refusal = target.check(path.read_bytes())
    print("accepted" if refusal is None else f"refused: {chain_text(refusal)}")
    return 0


def table(reports: Sequence[Report]) -> str:
    lines = [("target", "runs", "accepted", "shapes", "seconds", "runs/s", "")]
    for report in reports:
        outcome = report.outcome
        speed = outcome.runs / outcome.seconds if outcome.seconds else 0
        lines.append(
            (
                report.name,
                f"{outcome.runs:,}",
                f"{outcome.accepted:,}",
                str(outcome.shapes or "-"),
                f"{outcome.seconds:.0f}",
                f"{speed:.0f}",
                "FINDING" if report.finding else "ok",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Feed the readers with bad data.")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each target ({RUNS:,})")
    parser.add_argument("--seed", type=int, help="default: a random one")
    parser.add_argument("--engine", choices=["auto", "atheris", "own"], default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time (1)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="feed this file once")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(target_names()))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    engine: str = options.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "own"
    names: list[str] = options.targets or target_names()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    try:
        if unknown := set(names) - set(target_names()):
            load_target(min(unknown))
        if options.input is not None:
            return _again(names[0], options.input)
        if options.child is not None:
            return _child(names[0], engine, options.runs, seed, options.child)
        print(f"fuzz: engine {engine}, seed {seed}, {options.runs:,} runs each", file=sys.stderr)
        with ThreadPoolExecutor(options.jobs) as pool:
            reports = list(
                pool.map(lambda name: run_target(name, engine, options.runs, seed), names)
            )
    except BootcError as error:
        hint = f" (try: {error.hint})" if error.hint else ""
        print(f"fuzz: {chain_text(error)}{hint}", file=sys.stderr)
        return 1
    print(table(reports))
    for report in reports:
        if report.finding:
            print(f"\nfuzz: {report.name}:\n{report.finding}", file=sys.stderr)
            print(f"repeat it: nox -s fuzz -- --input FILE {report.name}", file=sys.stderr)
    return 1 if any(report.finding for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
