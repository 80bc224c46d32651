# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a run of plans came to, as frozen records, and the document `results.json`.

Outcomes are tmt's. A test's outcome is the worse of its exit status (0 pass, 1 fail, anything else
error) and of the sub-results that it reported, and then what its `result` key makes of it. (tmt
forgets the exit status when there are sub-results; a test that crashes after its first pass is an
error here.)

`results.json`, version 1. Keys are stable; new ones may be added; times are seconds:

version        1
started        RFC 3339, UTC
duration       of the whole run
outcome        the worst of all tests
exit-status    0 ok · 1 fail or warn · 2 error, infra, or pending · 3 nothing ran · 4 all skipped
context        {dimension: value or list} that the metadata was adjusted for
plans[]        name, summary, machine (memory | boot), outcome, note[], phases[] {name, seconds},
               log[], tests[], verdict (null when all is well, else infra | boot | test)
plans[].tests[]  name, serial-number, summary, result, original-result, note[], duration, reboots,
               phases[] {name, seconds}, log[], subresult[] {name, result, log[], end-time}

A log is a path below the folder that holds `results.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from bootc.jsonutil import Json
from vmtests.plans import Interpret, Start

VERSION = 1
EXIT_OK, EXIT_FAIL, EXIT_ERROR, EXIT_NOTHING, EXIT_SKIPPED = range(5)


class Outcome(StrEnum):
    """A test's outcome, from the least to the most severe.

    tmt ranks `pending` lowest; here a test that never ran outweighs those that passed.
    """

    SKIP = "skip"
    INFO = "info"
    PASS = "pass"
    PENDING = "pending"
    WARN = "warn"
    FAIL = "fail"
    ERROR = "error"

    @property
    def severity(self) -> int:
        return list(Outcome).index(self)

    @property
    def is_bad(self) -> bool:
        """Whether a person must look at it."""
        return self in (Outcome.WARN, Outcome.FAIL, Outcome.ERROR, Outcome.PENDING)

    @classmethod
    def of_status(cls, status: int) -> Outcome:
        """What a test's exit status says."""
        return {0: cls.PASS, 1: cls.FAIL}.get(status, cls.ERROR)


class Verdict(StrEnum):
    """Where a plan went wrong."""

    INFRA = "infra"
    BOOT = "boot"
    TEST = "test"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The most severe; `pending` when there is none."""
    return max(outcomes, key=lambda outcome: outcome.severity, default=Outcome.PENDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Something that took `seconds`: a stage of the boot, a part of the run."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SubResult:
    """A part of a test, reported by it."""

    name: str
    outcome: Outcome
    logs: tuple[str, ...] = ()
    ended: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """One test. `original` is the outcome before the `result` key was applied."""

    __test__ = False

    name: str
    serial: int
    summary: str = ""
    outcome: Outcome
    original: Outcome
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    reboots: int = 0
    phases: tuple[Phase, ...] = ()
    logs: tuple[str, ...] = ()
    subresults: tuple[SubResult, ...] = ()
    output: str = ""
    """The end of what it printed; in the reports, but not in `results.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """One plan on its machine."""

    name: str
    summary: str
    start: Start
    tests: tuple[TestResult, ...]
    verdict: Verdict | None = None
    notes: tuple[str, ...] = ()
    phases: tuple[Phase, ...] = ()
    logs: tuple[str, ...] = ()
    console: str = ""
    dossier: str = ""

    @property
    def outcome(self) -> Outcome:
        if self.verdict in (Verdict.INFRA, Verdict.BOOT):
            return Outcome.ERROR
        return worst(test.outcome for test in self.tests)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """All plans of one run."""

    started: datetime
    seconds: float
    plans: tuple[PlanResult, ...]
    context: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

    @property
    def tests(self) -> tuple[TestResult, ...]:
        return tuple(test for plan in self.plans for test in plan.tests)

    @property
    def outcome(self) -> Outcome:
        return worst(plan.outcome for plan in self.plans)

    def count(self, outcome: Outcome) -> int:
        return sum(test.outcome is outcome for test in self.tests)

    @property
    def exit_status(self) -> int:
        """As tmt's: see this module's docstring."""
        outcomes = {test.outcome for test in self.tests}
        if not outcomes:
            return EXIT_NOTHING
        if outcomes & {Outcome.ERROR, Outcome.PENDING} or self.outcome is Outcome.ERROR:
            return EXIT_ERROR
        if outcomes & {Outcome.FAIL, Outcome.WARN}:
            return EXIT_FAIL
        return EXIT_SKIPPED if outcomes == {Outcome.SKIP} else EXIT_OK


def interpret(outcome: Outcome, how: Interpret) -> tuple[Outcome, tuple[str, ...]]:
    """The outcome that counts, and notes that say so when it is another one."""
    match how:
        case Interpret.RESPECT:
            return outcome, ()
        case Interpret.XFAIL:
            if outcome is Outcome.PASS:
                return Outcome.FAIL, ("test was expected to fail", "original test result: pass")
            if outcome is Outcome.FAIL:
                return Outcome.PASS, ("test failed as expected", "original test result: fail")
            return outcome, ()
        case _:
            forced = Outcome(how.value)
            said = f"test result overridden: {forced}"
            if forced is outcome:
                return forced, (said,)
            return forced, (said, f"original test result: {outcome}")


def _phases(phases: Sequence[Phase]) -> Json:
    return [{"name": phase.name, "seconds": round(phase.seconds, 3)} for phase in phases]


def _test_json(test: TestResult) -> Json:
    return {
        "name": test.name,
        "serial-number": test.serial,
        "summary": test.summary,
        "result": test.outcome.value,
        "original-result": test.original.value,
        "note": list(test.notes),
        "duration": round(test.seconds, 3),
        "reboots": test.reboots,
        "phases": _phases(test.phases),
        "log": list(test.logs),
        "subresult": [
            {
                "name": sub.name,
                "result": sub.outcome.value,
                "log": list(sub.logs),
                "end-time": sub.ended,
            }
            for sub in test.subresults
        ],
    }


def _plan_json(plan: PlanResult) -> Json:
    return {
        "name": plan.name,
        "summary": plan.summary,
        "machine": plan.start.value,
        "outcome": plan.outcome.value,
        "verdict": plan.verdict.value if plan.verdict else None,
        "note": list(plan.notes),
        "phases": _phases(plan.phases),
        "log": list(plan.logs),
        "tests": [_test_json(test) for test in plan.tests],
    }


def to_json(run: RunResult) -> Json:
    """The document `results.json`."""
    return {
        "version": VERSION,
        "started": run.started.isoformat(timespec="seconds"),
        "duration": round(run.seconds, 3),
        "outcome": run.outcome.value,
        "exit-status": run.exit_status,
        "context": {
            key: value if isinstance(value, str) else list(value)
            for key, value in run.context.items()
        },
        "plans": [_plan_json(plan) for plan in run.plans],
    }
