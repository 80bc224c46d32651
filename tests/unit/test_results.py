# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What outcomes come to."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from vmtests.plans import Interpret, Start
from vmtests.results import Outcome, PlanResult, RunResult, TestResult, Verdict, interpret, worst


def make_test(outcome: Outcome, name: str = "/t") -> TestResult:
    return TestResult(name=name, serial=1, outcome=outcome, original=outcome)


def make_run(*outcomes: Outcome, verdict: Verdict | None = None) -> RunResult:
    plan = PlanResult(
        name="/p",
        summary="",
        start=Start.BOOT,
        tests=tuple(make_test(outcome) for outcome in outcomes),
        verdict=verdict,
    )
    return RunResult(started=datetime.now(UTC), seconds=1.0, plans=(plan,))


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ((), 3),
        ((Outcome.PASS, Outcome.INFO, Outcome.SKIP), 0),
        ((Outcome.PASS, Outcome.WARN), 1),
        ((Outcome.PASS, Outcome.FAIL), 1),
        ((Outcome.FAIL, Outcome.ERROR), 2),
        ((Outcome.PASS, Outcome.PENDING), 2),
        ((Outcome.SKIP, Outcome.SKIP), 4),
    ],
)
def test_exit_status(outcomes: tuple[Outcome, ...], status: int) -> None:
    assert make_run(*outcomes).exit_status == status


def test_a_machine_that_failed_is_an_error_whatever_the_tests_say() -> None:
    run = make_run(Outcome.PASS, verdict=Verdict.INFRA)
    assert run.outcome is Outcome.ERROR
    assert run.exit_status == 2


def test_worst() -> None:
    assert worst([Outcome.PASS, Outcome.SKIP]) is Outcome.PASS
    assert worst([Outcome.WARN, Outcome.PENDING]) is Outcome.WARN
    assert worst([Outcome.PASS, Outcome.PENDING]) is Outcome.PENDING
    assert worst([]) is Outcome.PENDING


@pytest.mark.parametrize(("status", "outcome"), [(0, "pass"), (1, "fail"), (2, "error")])
def test_outcome_of_an_exit_status(status: int, outcome: str) -> None:
    assert Outcome.of_status(status) == outcome


def test_outcome_of_a_signal() -> None:
    assert Outcome.of_status(-11) is Outcome.ERROR


@pytest.mark.parametrize(
    ("outcome", "how", "counts", "notes"),
    [
        (Outcome.FAIL, Interpret.RESPECT, Outcome.FAIL, ()),
        (Outcome.FAIL, Interpret.XFAIL, Outcome.PASS, ("test failed as expected",)),
        (Outcome.PASS, Interpret.XFAIL, Outcome.FAIL, ("test was expected to fail",)),
        (Outcome.ERROR, Interpret.XFAIL, Outcome.ERROR, ()),
        (Outcome.FAIL, Interpret.INFO, Outcome.INFO, ("test result overridden: info",)),
        (Outcome.WARN, Interpret.WARN, Outcome.WARN, ("test result overridden: warn",)),
    ],
)
def test_interpret(
    outcome: Outcome, how: Interpret, counts: Outcome, notes: tuple[str, ...]
) -> None:
    found, said = interpret(outcome, how)
    assert found is counts
    assert said[:1] == notes
    if found is not outcome:
        assert said[1] == f"original test result: {outcome}"
