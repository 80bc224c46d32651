# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What people and other programs get to see of a run.

`write_reports` puts into one folder: `results.json` (see vmtests.results), `junit.xml` and
`report.html` (see vmtests.page). `summary` is the text for the terminal.

JUnit: one testsuite a plan, one testcase a test, valid by the schema that Jenkins checks with
(junit-10.xsd of its xunit plugin). `warn` and `fail` are failures; `error` and `pending` are
errors; `skip` is skipped; `pass` and `info` pass. That schema knows properties of a testsuite only:
`seconds:PHASE`, and for tests `TEST seconds:PHASE`, `TEST reboots` and `TEST subresult:NAME`. What
is wrong with a plan's machine stands in the testsuite's `system-err`.

As long as a run is at work, its folder has a file `.running`, locked by flock(2). The file without
the lock tells that the run was killed before it could write its reports.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bootc.errors import BootcError
from bootc.jsonutil import pretty
from vmtests import page
from vmtests.readiness import plain
from vmtests.results import Outcome, Phase, PlanResult, RunResult, TestResult, to_json

_log = logging.getLogger(__name__)
_RESULTS = "results.json"
_RUNNING = ".running"
_FAILURES = (Outcome.FAIL, Outcome.WARN)
_ERRORS = (Outcome.ERROR, Outcome.PENDING)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """A folder for the results of one run, which is that of the block.

    Results of a former run there are removed, be they whole or not; those of other runs in folders
    of their own below it stay. Raises `BootcError` for a folder with anything else in it, and while
    another run writes there.
    """
    if folder.is_dir() and not _is_ours(folder) and not all(map(_is_ours, folder.iterdir())):
        raise BootcError(
            f"{folder} is not empty and holds no results of ours",
            hint="give a folder that does not exist yet, as TMT_LOG_DIR",
        )
    mark = folder / _RUNNING
    killed = mark.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with mark.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BootcError(
                f"another run is writing its results to {folder}",
                hint="wait for its end, or give another folder, as TMT_LOG_DIR",
            ) from None
        if killed:
            _log.warning("%s: what a run that was killed left there is removed", folder)
        for path in folder.iterdir():
            if path == mark or _is_ours(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    return (path / _RESULTS).is_file() or (path / _RUNNING).is_file()


def write_reports(run: RunResult, folder: Path) -> None:
    """Write all reports, each at once or not at all."""
    for name, text in (
        (_RESULTS, pretty(to_json(run))),
        ("junit.xml", junit(run)),
        ("report.html", page.render(run)),
    ):
        fresh = folder / f".{name}.new"
        fresh.write_text(text)
        fresh.replace(folder / name)


def summary(run: RunResult, folder: Path | None = None) -> str:
    """The run on a few lines; each plan that failed with its dossier's whereabouts."""
    lines = []
    for plan in run.plans:
        verdict = f" [{plan.verdict}]" if plan.verdict else ""
        lines.append(f"{plan.outcome:<7} {plan.name}{verdict}  {plan.seconds:.1f} s")
        lines += [f"        because {note}" for note in plan.notes]
        for test in plan.tests:
            notes = f"  ({'; '.join(test.notes)})" if test.notes else ""
            lines.append(f"  {test.outcome:<7} {test.name}  {test.seconds:.1f} s{notes}")
            lines += [
                f"    {sub.outcome:<7} {sub.name}" for sub in test.subresults if sub.outcome.is_bad
            ]
        dossiers = [log for log in plan.logs if log.endswith("dossier.txt")]
        lines += [f"  read    {folder / log if folder else log}" for log in dossiers]
    counts = [
        f"{run.count(outcome)} {outcome}" for outcome in reversed(Outcome) if run.count(outcome)
    ]
    plans = f"{len(run.plans)} plan{'' if len(run.plans) == 1 else 's'}"
    lines.append(f"{plans}, {', '.join(counts) or 'no test'} in {run.seconds:.1f} s")
    if folder is not None:
        lines.append(f"report  {folder / 'report.html'}")
    return "\n".join(lines) + "\n"


def tally(run: RunResult) -> str:
    """One closing line in the form that collectors of test results look for."""
    passed = run.count(Outcome.PASS) + run.count(Outcome.INFO)
    failed = sum(test.outcome.is_bad for test in run.tests)
    return f"tests: {passed} passed, {failed} failed, {run.count(Outcome.SKIP)} skipped\n"


def _clean(text: str) -> str:
    """`text` without terminal control and without what else XML 1.0 cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", plain(text))


def _number(seconds: float) -> str:
    return f"{seconds:.3f}"


def _totals(tests: Iterable[TestResult], seconds: float) -> dict[str, str]:
    outcomes = [test.outcome for test in tests]
    return {
        "tests": str(len(outcomes)),
        "failures": str(sum(outcome in _FAILURES for outcome in outcomes)),
        "errors": str(sum(outcome in _ERRORS for outcome in outcomes)),
        "time": _number(seconds),
    }


def _properties(parent: ET.Element, pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        properties = ET.SubElement(parent, "properties")
        for name, value in pairs:
            ET.SubElement(properties, "property", name=_clean(name), value=_clean(value))


def _phase_pairs(phases: Iterable[Phase], prefix: str = "") -> list[tuple[str, str]]:
    return [(f"{prefix}seconds:{phase.name}", _number(phase.seconds)) for phase in phases]


def _test_pairs(test: TestResult) -> list[tuple[str, str]]:
    prefix = f"{test.name} "
    pairs = _phase_pairs(test.phases, prefix)
    if test.reboots:
        pairs.append((f"{prefix}reboots", str(test.reboots)))
    return pairs + [(f"{prefix}subresult:{sub.name}", sub.outcome) for sub in test.subresults]


def _testcase(suite: ET.Element, plan: PlanResult, test: TestResult) -> None:
    case = ET.SubElement(
        suite, "testcase", name=test.name, classname=plan.name, time=_number(test.seconds)
    )
    message = _clean("; ".join(test.notes) or test.outcome.value)
    if test.outcome is Outcome.SKIP:
        ET.SubElement(case, "skipped", message=message)
    elif test.outcome in _ERRORS:
        ET.SubElement(case, "error", message=message, type=test.outcome.value)
    elif test.outcome in _FAILURES:
        bad = [f"{sub.outcome} {sub.name}" for sub in test.subresults if sub.outcome.is_bad]
        failure = ET.SubElement(case, "failure", message=message, type=test.outcome.value)
        failure.text = _clean("\n".join(bad))
    if test.output:
        ET.SubElement(case, "system-out").text = _clean(test.output)


def junit(run: RunResult) -> str:
    """The run as JUnit XML."""
    root = ET.Element("testsuites", {"name": "booted tests", **_totals(run.tests, run.seconds)})
    for plan in run.plans:
        suite = ET.SubElement(
            root,
            "testsuite",
            {
                "name": plan.name,
                **_totals(plan.tests, plan.seconds),
                "skipped": str(sum(test.outcome is Outcome.SKIP for test in plan.tests)),
                "timestamp": run.started.strftime("%Y-%m-%dT%H:%M:%S"),
                "hostname": "guest",
            },
        )
        pairs = [("machine", plan.start.value), ("verdict", plan.verdict or "none")]
        pairs += _phase_pairs(plan.phases)
        for test in plan.tests:
            pairs += _test_pairs(test)
        _properties(suite, pairs)
        for test in plan.tests:
            _testcase(suite, plan, test)
        ET.SubElement(suite, "system-out").text = _clean(plan.console)
        ET.SubElement(suite, "system-err").text = _clean("\n".join(plan.notes))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
