# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The comparison with tmt, by a program called tmt that records its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bootc.errors import BootcError, FormatError, ProcessError
from bootc.process import Completed
from vmtests import interop
from vmtests.interop import TheirResult
from vmtests.machine import Machine
from vmtests.plans import Plan, Start, load_plans
from vmtests.results import Outcome, PlanResult, SubResult, TestResult

CHECKOUT = Path(__file__).resolve().parents[2]

RESULTS = """
- name: /tmt/tests/booted/reboot/state
  result: {result}
  subresult:
  - name: /part
    result: pass
- name: /other
  result: pass
"""


def fits_the_real_machine(machine: Machine) -> interop.ConnectedMachine:
    """mypy's proof that tmt can be let onto `vmtests.machine`."""
    return machine


def fake_tmt(folder: Path, monkeypatch: pytest.MonkeyPatch, result: str, status: int) -> Path:
    """A program called tmt; returns the file that its arguments and some variables go to."""
    record = folder / "record"
    (folder / "results.yaml").write_text(RESULTS.format(result=result).replace("pass", result))
    program = folder / "tmt"
    program.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$@" "scripts=$TMT_SCRIPTS_DIR" >{record}
while [ "$1" != --id ]; do shift; done
mkdir -p "$2/tmt/plans/reboot/execute"
[ {result} = none ] || cp {folder}/results.yaml "$2/tmt/plans/reboot/execute/"
echo 'why it went wrong' >&2
exit {status}
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return record


def reboot_plan() -> Plan:
    plans = load_plans(CHECKOUT, {"distro": "debian-13"})
    return next(plan for plan in plans if plan.name == "/tmt/plans/reboot")


def run(plan: Plan) -> tuple[TheirResult, ...]:
    context = {"distro": "debian-13", "tags": ["a", "b"]}
    return interop.run_tmt(plan, 2222, Path("/k/id"), root=CHECKOUT, context=context)


def test_arguments_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = fake_tmt(tmp_path, monkeypatch, "pass", 0)
    first, second = run(reboot_plan())
    assert first.name == "/tmt/tests/booted/reboot/state"
    assert (first.outcome, first.subresults) == ("pass", (("/part", "pass"),))
    assert (second.outcome, second.subresults) == ("pass", ())
    said = record.read_text().splitlines()
    text = " ".join(said)
    assert "--context distro=debian-13 --context tags=a,b run --all" in text
    assert "provision --how connect --guest 127.0.0.1 --port 2222 --key /k/id --user root" in text
    assert "plan --name ^/tmt/plans/reboot$" in text
    assert "scripts=/var/lib/tmt/scripts" in said
    work = Path(said[said.index("--id") + 1])
    assert len(str(work)) > 84, "shorter, and tmt waits for its SSH master"
    assert work.is_relative_to("/var/tmp")
    assert not work.exists(), "nothing is left behind"


@pytest.mark.parametrize("result", ["pending", "none"])
def test_a_tmt_that_ran_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    fake_tmt(tmp_path, monkeypatch, result, 2)
    with pytest.raises(ProcessError, match="why it went wrong"):
        run(reboot_plan())


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{[", "is not YAML"), ("- {result: pass}", r"\.results\[0\]\.name"), ("3", ".results")],
)
def test_bad_results(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "results.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=problem):
        interop.read_results(path)


def make_plan(*tests: tuple[str, Outcome, tuple[SubResult, ...]]) -> PlanResult:
    return PlanResult(
        name="/p",
        summary="",
        start=Start.BOOT,
        tests=tuple(
            TestResult(name=name, serial=1, outcome=outcome, original=outcome, subresults=subs)
            for name, outcome, subs in tests
        ),
    )


def test_compare() -> None:
    part = SubResult(name="/part", outcome=Outcome.PASS)
    ours = make_plan(
        ("/same", Outcome.PASS, (part,)),
        ("/differs", Outcome.PASS, ()),
        ("/parts", Outcome.PASS, ()),
        ("/ours", Outcome.PASS, ()),
    )
    theirs = [
        TheirResult(name="/same", outcome="pass", subresults=(("/part", "pass"),)),
        TheirResult(name="/differs", outcome="fail", subresults=()),
        TheirResult(name="/parts", outcome="pass", subresults=(("/part", "pass"),)),
        TheirResult(name="/theirs", outcome="pass", subresults=()),
    ]
    assert interop.compare(ours, theirs) == [
        "/differs: ours pass, tmt's fail",
        "/parts: sub-results ours [], tmt's [('/part', 'pass')]",
        "/ours: ours pass, tmt's nothing",
        "/theirs: ours nothing, tmt's pass",
    ]


class Rsyncless:
    """A guest in which every command fails."""

    timings: Mapping[str, float] = {}

    def run(self, command: str, *, timeout: float, check: bool) -> Completed:
        return Completed(status=1, stdout="", stderr="")

    def put(self, source: Path, target: str) -> None: ...

    def get(self, source: str, target: Path) -> None: ...

    def reboot(self, command: str = "") -> Mapping[str, float]:
        return {}

    def console_tail(self, count: int = 1) -> str:
        return ""


def test_a_guest_without_rsync_is_refused() -> None:
    with pytest.raises(BootcError, match="no rsync") as caught:
        interop.prepare_guest(Rsyncless())
    assert caught.value.hint
