# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a comparison found: how many times the same, how many times not, and where."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bootc.errors import BootcError, chain_text

SHOWN = 5
"""Differences that are told in full, of each check."""


@dataclass(slots=True, kw_only=True)
class Check:
    """One kind of comparison. `refused`: both refused, or the other one does by its own limits."""

    name: str
    same: int = 0
    refused: int = 0
    different: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """The checks of one program, in the order in which they were first met."""

    checks: dict[str, Check] = field(default_factory=dict)

    def check(self, name: str) -> Check:
        return self.checks.setdefault(name, Check(name=name))

    def compare(self, name: str, ours: object, theirs: object, where: str) -> bool:
        """Whether they are equal; a difference is noted with `where`, how to see it again."""
        if ours == theirs:
            self.check(name).same += 1
            return True
        self.differ(name, f"{where}: ours {_short(ours)}, theirs {_short(theirs)}")
        return False

    def differ(self, name: str, text: str) -> None:
        self.check(name).different.append(text)

    def refuse(self, name: str) -> None:
        self.check(name).refused += 1

    @property
    def is_good(self) -> bool:
        """Whether something was compared, and nothing differed."""
        checks = self.checks.values()
        return bool(checks) and all(check.same and not check.different for check in checks)

    def table(self) -> str:
        rows = [["check", "same", "refused", "different"]]
        for check in self.checks.values():
            numbers = (check.same, check.refused, len(check.different))
            rows.append([check.name, *(f"{number:,}" for number in numbers)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def report(self) -> str:
        """The differences, a few of each check."""
        lines: list[str] = []
        for check in self.checks.values():
            lines += [f"{check.name}: {text}" for text in check.different[:SHOWN]]
            if len(check.different) > SHOWN:
                lines.append(f"{check.name}: … and {len(check.different) - SHOWN} more")
            if not check.same:
                lines.append(f"{check.name}: nothing was the same")
        return "\n".join(lines)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def main(
    name: str,
    compare: Callable[[Tally, random.Random, int], None],
    argv: Sequence[str] | None = None,
    *,
    count: int,
) -> int:
    """The command of a comparison: `--seed`, `--count`; a table on stdout; status 1 if not good.

    `compare` gets a generator of its own and the count. What it raises as `BootcError`, such as a
    program that is missing, is one line and a failure.
    """
    parser = argparse.ArgumentParser(prog=name)
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--count", type=int, default=count, help=f"how many ({count})")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"{name}: seed {seed}, count {options.count}", flush=True)
    tally = Tally()
    try:
        compare(tally, random.Random(f"{name} {seed}"), options.count)
    except BootcError as error:
        hint = f" (try: {error.hint})" if error.hint else ""
        print(f"{name}: {chain_text(error)}{hint}", file=sys.stderr)
        return 1
    print(tally.table())
    if not tally.is_good:
        print(tally.report() or f"{name}: nothing was compared", file=sys.stderr)
        return 1
    return 0
