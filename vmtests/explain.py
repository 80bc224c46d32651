# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The options told to people and to CI: why a combination is refused, which ones there are, docs.

Everything here is derived from `options` and `constraints`, and returns text. Run as a program
(`python -m vmtests.explain`) it brings docs/variables.md and the README's table up to date.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bootc import jsonutil
from bootc.errors import BootcError
from vmtests import paths
from vmtests.constraints import (
    AXES,
    NOT_YET,
    RULES,
    Combination,
    Situation,
    broken_rules,
    find_gaps,
    legal_combinations,
    nearest_legal,
    raw_combinations,
)
from vmtests.options import OPTIONS, BcvkInstallOpts, read_options
from vmtests.variables import FOREIGN, REFUSED

BEGIN = "<!-- BEGIN GENERATED: {name} (python -m vmtests.explain) -->"
END = "<!-- END GENERATED: {name} -->"
README_TABLE = "variables"


def explain(
    environ: Mapping[str, str] = os.environ, overrides: Mapping[str, str] | None = None
) -> list[str]:
    """Lines: every option with its value and source, then what is refused, why, and the ways out.

    Never raises: what cannot be read is the explanation.
    """
    reading = read_options(environ, overrides)
    opts = reading.options
    rows = [
        [one.variable, opts.text(name) or "-", str(opts.source(name))]
        for name, one in OPTIONS.items()
    ]
    lines = [*_aligned([["variable", "value", "source"], *rows]), ""]
    if reading.problems:
        return lines + [line for one in reading.problems for line in _told(one)]
    broken = broken_rules(opts.situation())
    if broken:
        lines += ["refused: these do not go together"]
        lines += [f"  {rule.name}: {rule.text}, because {rule.reason}" for rule in broken]
        explicit = frozenset(name for name in OPTIONS if opts.source(name).explicit)
        for one in nearest_legal(opts.situation(), explicit):
            lines.append(f"  nearest legal: {_changes(opts.combination, one)}{_later(one)}")
        lines += [f"  or: {rule.remedy}" for rule in broken if rule.remedy]
        return lines
    missing = opts.support_problems()
    if missing:
        return lines + [line for one in missing for line in _told(one)]
    return [
        *lines,
        "legal and supported",
        f"  bootc install to-disk {' '.join(opts.install_args())}",
        f"  machine: {' '.join(opts.firmware_args())}",
    ]


def variants_table(current: Combination | None = None) -> list[str]:
    """Lines: the legal combinations, whether this release can do them; `*` is the one in force."""
    rows = [["", *AXES, "supported"]]
    legal = legal_combinations()
    for one in legal:
        supported = "no" if find_gaps(Situation(combination=one)) else "yes"
        rows.append(["*" if one == current else "", *one.values().values(), supported])
    lines = _aligned(rows)
    if current is not None and current not in legal:
        said = " ".join(f"{axis}={value}" for axis, value in current.values().items())
        lines += ["", f"in force, but not legal: {said} (./dev invoke explain)"]
    return lines


def ci_matrix(*, supported: bool = False) -> str:
    """The legal combinations, or the supported ones of them, as a JSON array of objects."""
    rows: list[jsonutil.Json] = []
    for one in legal_combinations():
        able = not find_gaps(Situation(combination=one))
        if able or not supported:
            rows.append({**one.values(), "supported": able})
    return jsonutil.pretty(rows)


def variables_table() -> str:
    """The README's table: a Markdown row for each option."""
    plain = BcvkInstallOpts()
    rows = [["Variable", "Values", "Default", "Meaning"]]
    for name, one in OPTIONS.items():
        default = plain.text(name)
        values = ", ".join(f"`{value}`" for value in one.choices) or one.values
        rows.append([f"`{one.variable}`", values, f"`{default}`" if default else "", one.summary])
    return _markdown(rows)


def variables_page() -> str:
    """docs/variables.md."""
    flags = [["Variable", "Flag", "Changes"]]
    flags += [[f"`{o.variable}`", f"`{o.flag}`", o.stage.value] for o in OPTIONS.values()]
    rules = [["Rule", "Says", "Because"]]
    rules += [[rule.name, rule.text, rule.reason] for rule in RULES]
    gaps = [["Value", "Why not yet", "Set instead"]]
    gaps += [
        [f"`{OPTIONS[axis].variable}={value}`", reason, f"`{OPTIONS[axis].variable}={instead}`"]
        for (axis, value), (reason, instead) in NOT_YET.items()
    ]
    combinations = [[*AXES, "supported"]]
    for one in legal_combinations():
        able = not find_gaps(Situation(combination=one))
        combinations.append([*one.values().values(), "yes" if able else "not yet"])
    refused = [["Variable", "Why", "Do"]]
    refused += [[f"`{name}`", reason, action] for name, (reason, action) in REFUSED.items()]
    foreign = [["Variable", "Whose, and what for"]]
    foreign += [[f"`{name}`", meaning] for name, meaning in FOREIGN.items()]
    counts = f"{len(combinations) - 1} of the {len(list(raw_combinations()))} combinations"
    return "\n".join(
        [
            "<!-- GENERATED by `python -m vmtests.explain`; edit vmtests/options.py instead. -->",
            "# Variables",
            "",
            "A flag beats a variable, a variable beats the default, an empty variable is unset.",
            "An unknown name, an unknown value and an impossible combination are refused, with the",
            "rule and the nearest legal choice; `./dev invoke explain` shows what is in force and",
            "why, `./dev invoke variants` lists the combinations.",
            "",
            variables_table(),
            "## Flags, and what an option changes",
            "",
            "An option that changes the image changes the disk and the machine too. Options that",
            "change the image are kept in it as `bootc.kit.*` labels, and a machine is not started",
            "with others.",
            "",
            _markdown(flags),
            "## Combinations",
            "",
            f"{counts} are legal:",
            "",
            _markdown(combinations),
            "## Rules",
            "",
            _markdown(rules),
            "## Not supported yet",
            "",
            "Legal, and refused until it works. So is any `BOOTC_baseconfigs`.",
            "",
            _markdown(gaps),
            "## Refused variables",
            "",
            "Known from other toolkits; here they would have no effect, so they are refused.",
            "",
            _markdown(refused),
            "## Variables of others",
            "",
            "Let through, and not read by the kit's options.",
            "",
            _markdown(foreign).rstrip("\n"),
            "",
        ]
    )


def replace_generated(text: str, name: str, body: str) -> str:
    """`text` with `body` between the markers that are called `name`."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BootcError(f"no markers for {name!r}", hint=f"add the lines {begin} and {end}")
    return f"{before}{begin}\n{body}{end}{after}"


def plan_docs(root: Path) -> dict[Path, str]:
    """The generated files below `root` whose text is not what it should be, with that text.

    A README has the table if it has its markers.
    """
    page = root / "docs" / "variables.md"
    wanted = {page: variables_page()}
    readme = root / "README.md"
    text = readme.read_text() if readme.exists() else ""
    if BEGIN.format(name=README_TABLE) in text:
        wanted[readme] = replace_generated(text, README_TABLE, variables_table())
    return {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text
    }


def apply_docs(plan: Mapping[Path, str]) -> None:
    """Write what `plan_docs` planned."""
    for path, text in plan.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def _told(problem: BootcError) -> list[str]:
    hint = [f"  {problem.hint}"] if problem.hint else []
    return [f"refused: {problem.message}", *hint]


def _changes(asked: Combination, other: Combination) -> str:
    changes = asked.changes_to(other).items()
    return " ".join(f"{OPTIONS[axis].variable}={value}" for axis, value in changes) or "as it is"


def _later(one: Combination) -> str:
    return " (not supported yet)" if find_gaps(Situation(combination=one)) else ""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str]) -> int:
    """Write the generated parts, or with `--check` fail when they are not what they should be."""
    plan = plan_docs(paths.CHECKOUT)
    stale = [path for path, text in plan.items() if not path.exists() or path.read_text() != text]
    if list(argv) != ["--check"]:
        apply_docs(plan)
        return 0
    for path in stale:
        print(f"error: {path.name} is not up to date", file=sys.stderr)
        print("hint: run ./dev nox -s docs -- --write and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
