# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The reports of one run that has everything in it, against goldens (UPDATE_GOLDENS=1 rewrites)."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmtests import dossier, page, report
from vmtests.plans import Start
from vmtests.results import (
    Outcome,
    Phase,
    PlanResult,
    RunResult,
    SubResult,
    TestResult,
    Verdict,
)

GOLDENS = Path(__file__).resolve().parents[1] / "golden" / "results"


def check_golden(name: str, text: str) -> None:
    path = GOLDENS / name
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text)
    assert text == path.read_text()


def sample_run() -> RunResult:
    good = TestResult(
        name="/tests/state",
        serial=1,
        summary="State survives",
        outcome=Outcome.PASS,
        original=Outcome.PASS,
        seconds=21.5,
        reboots=1,
        phases=(
            Phase(name="run 1", seconds=0.5),
            Phase(name="reboot 1", seconds=20.0),
            Phase(name="run 2", seconds=1.0),
        ),
        logs=("reboot/01-state/output.txt",),
        output="ok\n",
    )
    bad = TestResult(
        name="/tests/units",
        serial=2,
        summary="Units <work>",
        outcome=Outcome.FAIL,
        original=Outcome.FAIL,
        notes=(),
        seconds=1.25,
        phases=(Phase(name="run 1", seconds=1.25),),
        logs=("reboot/02-units/output.txt",),
        subresults=(
            SubResult(name="/a & b", outcome=Outcome.PASS, ended="2026-01-02T03:04:06+00:00"),
            SubResult(name="/c.service", outcome=Outcome.FAIL, logs=("reboot/02-units/data/c",)),
        ),
        output="\x1b[31mFAIL\x1b[0m <c.service> & \x00more\n",
    )
    hung = TestResult(
        name="/tests/hang",
        serial=3,
        outcome=Outcome.ERROR,
        original=Outcome.ERROR,
        notes=("no end after 30 s",),
        seconds=30.1,
    )
    skipped = TestResult(name="/tests/skip", serial=4, outcome=Outcome.SKIP, original=Outcome.SKIP)
    plan = PlanResult(
        name="/plans/reboot",
        summary="Things & <reboots>",
        start=Start.BOOT,
        tests=(good, bad, hung, skipped),
        verdict=Verdict.TEST,
        phases=(
            Phase(name="machine", seconds=2.0),
            Phase(name="boot: kernel", seconds=11.0),
            Phase(name="tests", seconds=52.85),
        ),
        logs=("reboot/dossier.txt", "reboot/console.txt"),
        console="[    0.0] Linux <version>\nguest login: ",
        dossier="a page",
    )
    dead = PlanResult(
        name="/plans/dead",
        summary="Never up",
        start=Start.MEMORY,
        tests=(
            TestResult(
                name="/tests/later",
                serial=1,
                outcome=Outcome.PENDING,
                original=Outcome.PENDING,
                notes=("did not get its turn",),
            ),
        ),
        verdict=Verdict.BOOT,
        notes=("no machine: stuck in initrd for 40 s",),
        phases=(Phase(name="machine", seconds=60.0),),
        logs=("dead/dossier.txt",),
    )
    return RunResult(
        started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        seconds=130.25,
        plans=(plan, dead),
        context={"distro": "debian-13", "tags": ["a", "b"]},
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    report.write_reports(sample_run(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "junit.xml",
        "report.html",
        "results.json",
    ]
    return tmp_path


def test_results_json(written: Path) -> None:
    text = (written / "results.json").read_text()
    check_golden("results.json", text)
    document = json.loads(text)
    assert document["version"] == 1
    assert document["exit-status"] == 2
    assert [plan["verdict"] for plan in document["plans"]] == ["test", "boot"]


def test_junit(written: Path) -> None:
    text = (written / "junit.xml").read_text()
    check_golden("junit.xml", text)
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    assert {key: root.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "5",
        "failures": "1",
        "errors": "2",
    }
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert suite.get("errors") == str(len(suite.findall("testcase/error")))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
        assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
        assert all(re.fullmatch(r"\d+\.\d{3}", case.get("time", "")) for case in cases)
        # The schema that Jenkins checks with knows no properties of a testcase.
        assert not suite.findall("testcase/properties")
    values = {node.get("name"): node.get("value") for node in root.iter("property")}
    assert values["seconds:boot: kernel"] == "11.000"
    assert values["/tests/state seconds:reboot 1"] == "20.000"
    assert values["/tests/units subresult:/c.service"] == "fail"


def test_tally_counts_every_test_once() -> None:
    run = sample_run()
    counts = [int(word) for word in re.findall(r"\d+", report.tally(run))]
    assert sum(counts) == len(run.tests)
    assert counts[1] == sum(test.outcome.is_bad for test in run.tests) > 0


def test_summary() -> None:
    check_golden("summary.txt", report.summary(sample_run()))


def test_summary_names_the_folder(tmp_path: Path) -> None:
    text = report.summary(sample_run(), tmp_path)
    assert f"  read    {tmp_path}/reboot/dossier.txt\n" in text
    assert text.endswith(f"report  {tmp_path}/report.html\n")


def test_page(written: Path) -> None:
    text = (written / "report.html").read_text()
    check_golden("report.html", text)
    for needless in ("<script", "http://", "https://", "src=", "url("):
        assert needless not in text, "the page loads nothing and runs nothing"
    assert "&lt;c.service&gt; &amp; more" in text
    assert "light dark" in text


def test_page_of_no_plans() -> None:
    run = RunResult(started=datetime(2026, 1, 1, tzinfo=UTC), seconds=0.0, plans=())
    assert "0 tests" in page.render(run)


def test_dossier() -> None:
    plan = sample_run().plans[0]
    facts = {
        "failed units": "c.service loaded failed failed C",
        "bootc status": "",
        "kernel": "6.12.1",
    }
    text = dossier.write(
        plan,
        facts=facts,
        rerun="./dev nox -s tmt -- /plans/reboot",
        host_versions={"Python": "3.11.2", "kernel": "6.1", "QEMU": "10.0"},
    )
    check_golden("dossier.txt", text)
    assert "verdict    test: " in text
    assert len(text.splitlines()) < 70, "a dossier is one page"
