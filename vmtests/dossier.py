# SPDX-License-Identifier: Apache-2.0 OR MIT
"""One page of text about a plan that failed: what went wrong, where, and how to see it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Protocol

from bootc.errors import BootcError, chain_text
from vmtests.readiness import plain
from vmtests.results import PlanResult, Verdict

CONSOLE_LINES = 25
OUTPUT_LINES = 15

_MARK = "@@dossier "
_QUESTIONS: Mapping[str, str] = {
    "failed units": "systemctl list-units --failed --no-legend --plain --no-pager",
    "bootc status": "timeout 20 bootc status --format humanreadable",
    "processes": "ps --ppid 2 -p 2 --deselect -o pid,ppid,stat,etimes,wchan:20,args | cut -c -200",
    "where what is blocked waits": "for pid in $(ps -eo pid=,stat= | awk '$2 ~ /^D/ {print $1}');"
    " do ps -o pid=,args= $pid; cat /proc/$pid/stack; done",
    "errors in the journal": "journalctl -b -p err --no-pager -o short-monotonic | tail -n 20",
    "bootc": "bootc --version",
    "kernel": "uname -r",
    "systemd": "systemctl --version | head -n 1",
    "Python": "python3 --version",
    "distribution": '(. /etc/os-release && echo "$PRETTY_NAME")',
    "command line": "cat /proc/cmdline",
}
_BLOCKS = (
    "failed units",
    "bootc status",
    "errors in the journal",
    "processes",
    "where what is blocked waits",
)

_EXPLAINED: Mapping[Verdict, str] = {
    Verdict.INFRA: "infra: the machine or what carries it failed, the tests say nothing",
    Verdict.BOOT: "boot: the machine was started and did not come up",
    Verdict.TEST: "test: the machine worked and a test did not pass",
}


class _Answer(Protocol):
    @property
    def stdout(self) -> str: ...


class _Machine(Protocol):
    def run(self, command: str, *, timeout: float, check: bool) -> _Answer: ...


def ask_guest(machine: _Machine) -> dict[str, str]:
    """What the machine says about itself, by question; a lost machine says why in `machine`."""
    script = "".join(
        f"echo '{_MARK}{name}'\n{{ {command}; }} 2>&1 || :\n"
        for name, command in _QUESTIONS.items()
    )
    try:
        text = machine.run(script, timeout=90.0, check=False).stdout
    except BootcError as error:
        return {"machine": f"does not answer: {chain_text(error)}"}
    facts: dict[str, str] = {}
    for part in text.split(_MARK)[1:]:
        name, _, said = part.partition("\n")
        facts[name] = plain(said).strip()
    return facts or {"machine": "does not answer"}


def write(
    plan: PlanResult, *, facts: Mapping[str, str], rerun: str, host_versions: Mapping[str, str]
) -> str:
    """The page. `facts` are those of `ask_guest`, empty when there was no machine to ask."""
    lines = [f"{plan.name} failed", ""]
    if plan.verdict is not None:
        lines.append(f"verdict    {_EXPLAINED[plan.verdict]}")
    lines += [f"because    {note}" for note in plan.notes]
    lines += [f"again      {rerun}", "", "tests"]
    for test in plan.tests:
        notes = f"  ({'; '.join(test.notes)})" if test.notes else ""
        lines.append(f"  {test.outcome:<7} {test.name}{notes}")
        lines += [
            f"            {sub.outcome:<7} {sub.name}"
            for sub in test.subresults
            if sub.outcome.is_bad
        ]
    for test in plan.tests:
        if test.outcome.is_bad and test.output:
            lines += ["", f"the end of what {test.name} said", *_block(test.output, OUTPUT_LINES)]
    if "machine" in facts:
        lines += ["", f"machine    {facts['machine']}"]
    for name in _BLOCKS:
        if name in facts:
            lines += ["", name, *_block(facts[name] or "none", 30)]
    lines += ["", f"the last {CONSOLE_LINES} lines of the console"]
    lines += _block(plan.console or "nothing", CONSOLE_LINES)
    lines += ["", "versions"]
    versions = {name: said for name, said in facts.items() if name not in (*_BLOCKS, "machine")}
    lines += [f"  guest {name}: {said}" for name, said in versions.items()]
    host = {"Python": platform.python_version(), "kernel": platform.release(), **host_versions}
    lines += [f"  host {name}: {said}" for name, said in host.items()]
    lines += ["", "times"]
    lines += [f"  {phase.seconds:8.1f} s  {phase.name}" for phase in plan.phases]
    return "\n".join(lines) + "\n"


def _block(text: str, count: int) -> list[str]:
    return [f"  | {line}" for line in plain(text).rstrip().splitlines()[-count:]]
