# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The progress protocol: each line fits the schema, the important ones are never lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import derived_image
import jsonschema
import pytest
import schema_check

from bootc.composefs.progress import Done, Message, Progress, Skipped, Started
from bootc.deploy import progress, update
from bootc.deploy.progress import (
    INSTALLING,
    UPDATING,
    Observers,
    ProgressLog,
    ProgressWriter,
    Stage,
)
from bootc.errors import BootcError
from bootc.oci.layout import open_source
from bootc.oci.reference import parse_imgref
from tests.ocibuild import END, folder, member, sha256, write_layout
from tests.sysroots import ImageContent, MockMachine

TOP = Path(__file__).resolve().parents[2]
SCHEMA: dict[str, Any] = json.loads((TOP / "bootc/data/schema/progress-v0.schema.json").read_text())

TARS = [folder(b"./") + member(b"a", bytes(5000)) + END, member(b"b", bytes(9000)) + END]
FIRST, SECOND = (sha256(tar) for tar in TARS)


def records_of(work: Callable[[ProgressWriter], None], clock: Callable[[], float]) -> list[Any]:
    """What is written by `work`, each line checked against the schema."""
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as file:
        with ProgressWriter(writer, clock=clock) as told:
            work(told)
        text = file.read()
    assert text.endswith("\n") or not text
    found = [json.loads(line) for line in text.splitlines()]
    for record, line in zip(found, text.splitlines(), strict=True):
        jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)
        assert schema_check.problems(record, SCHEMA) == []
        assert json.dumps(record, sort_keys=True, separators=(",", ":")) == line
    return found


def stopped() -> float:
    """A clock on which no time passes."""
    return 0.0


def test_a_whole_update(tmp_path: Path) -> None:
    reference = write_layout(tmp_path, TARS)

    def work(told: ProgressWriter) -> None:
        with open_source(reference) as source:
            told.begin(source)
        told.stage(Stage.PULLING)
        told.report(Skipped(id=FIRST))
        told.report(Message(text="hello"))
        told.report(Started(id=SECOND, total=10240))
        told.report(Progress(id=SECOND, fetched=5000))
        told.report(Done(id=SECOND, transferred=len(TARS[1])))
        for stage in (Stage.IMPORTING, Stage.MERGING, Stage.DEPLOYING, Stage.CLEANUP):
            told.stage(stage)
        told.end()

    found = records_of(work, stopped)
    assert found[0] == {"type": "Start", "version": "0.1.0"}
    pulls = [record for record in found if record.get("task") == "pulling"]
    # Begin, the layer's end, end: what was between was too soon.
    assert [(one["bytes"], one["steps"]) for one in pulls] == [
        (0, 0),
        (len(TARS[1]), 1),
        (len(TARS[1]), 1),
    ]
    assert pulls[1]["subtasks"] == [
        {
            "subtask": "composefs_layer",
            "description": "Layer",
            "id": SECOND,
            "bytesCached": 0,
            "bytes": len(TARS[1]),
            "bytesTotal": len(TARS[1]),
        }
    ]
    last = pulls[-1]
    assert (last["bytesCached"], last["bytesTotal"]) == (len(TARS[0]), len(TARS[1]))
    assert (last["stepsCached"], last["stepsTotal"], last["subtasks"]) == (1, 1, [])
    steps = [(one["task"], one["steps"], one["stepsTotal"]) for one in found[1 + len(pulls) :]]
    assert steps == [
        ("importing", 0, 1),
        ("importing", 1, 1),
        ("staging", 0, 3),
        ("staging", 1, 3),
        ("staging", 1, 3),
        ("staging", 2, 3),
        ("staging", 2, 3),
        ("staging", 3, 3),
    ]
    assert [one["subtask"] for one in found[-1]["subtasks"]] == ["merging", "deploying", "cleanup"]
    assert all(one["completed"] for one in found[-1]["subtasks"])


def test_five_lines_a_second(tmp_path: Path) -> None:
    now = 0.0

    def clock() -> float:
        return now

    def work(told: ProgressWriter) -> None:
        nonlocal now
        with open_source(write_layout(tmp_path, TARS)) as source:
            told.begin(source)
        for fetched in range(1000):
            now += 0.01
            told.report(Progress(id=FIRST, fetched=fetched))

    found = records_of(work, clock)
    assert 48 <= len(found) - 1 <= 51


def test_nobody_reads(tmp_path: Path) -> None:
    """Lines in the middle of a task are dropped, so nothing waits for a reader that sleeps."""
    reader, writer = os.pipe()
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    with os.fdopen(reader, "rb") as file, ProgressWriter(writer, clock=clock) as told:
        with open_source(write_layout(tmp_path, TARS)) as source:
            told.begin(source)
        for fetched in range(5000):
            told.report(Progress(id=FIRST, fetched=fetched))
        told.close()
        assert file.read().count(b"\n") < 5000


def test_the_reader_goes_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    with ProgressWriter(writer) as told:
        os.close(reader)
        for stage in (Stage.PULLING, Stage.IMPORTING, *UPDATING):
            told.stage(stage)
        told.end()
    assert [record.getMessage() for record in caplog.records] == [
        "progress is not reported any more: Broken pipe"
    ]


def test_a_whole_install(tmp_path: Path) -> None:
    reference = write_layout(tmp_path, TARS)
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as file:
        with (
            ProgressWriter(writer, steps=INSTALLING, clock=stopped) as told,
            open_source(reference) as source,
        ):
            told.begin(source)
            for stage in (Stage.PREPARING, Stage.PULLING, Stage.IMPORTING, *INSTALLING[1:]):
                told.stage(stage)
            told.end()
        records = [json.loads(line) for line in file]
    for record in records:
        jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)
    steps = [(one["task"], one["steps"], one["stepsTotal"]) for one in records[1:]]
    assert steps == [
        *[("staging", 0, 3), ("staging", 1, 3)],
        *[("pulling", 0, 2), ("pulling", 0, 2)],
        *[("importing", 0, 1), ("importing", 1, 1)],
        *[("staging", 1, 3), ("staging", 2, 3), ("staging", 2, 3), ("staging", 3, 3)],
    ]
    names = [one["subtask"] for one in records[-1]["subtasks"]]
    assert names == ["preparing", "deploying", "finalizing"]


def test_nothing_is_written_before_the_first_event() -> None:
    assert records_of(lambda told: None, stopped) == []


def test_which_descriptors_are_taken(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        assert progress.adopt_pipe(writer) == writer
        assert not os.get_inheritable(writer)
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(BootcError, match="must be a descriptor above 2"):
        progress.adopt_pipe(2)
    with pytest.raises(BootcError, match="Bad file descriptor"):
        progress.adopt_pipe(writer)
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(BootcError, match="is not a pipe"),
    ):
        progress.adopt_pipe(file.fileno())


def test_an_update_of_a_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = MockMachine(tmp_path / "machine")
    machine.install(machine.image("1"))
    target = parse_imgref(machine.image("2", ImageContent("2")))

    def work(told: ProgressWriter) -> None:
        with caplog.at_level("INFO"):
            update.switch(
                machine.sysroot, target, observer=Observers([told, ProgressLog(clock=stopped)])
            )

    found = records_of(work, stopped)
    assert list(dict.fromkeys(record.get("task") for record in found)) == [
        None,
        "pulling",
        "importing",
        "staging",
    ]
    assert (found[-1]["steps"], found[-1]["stepsTotal"]) == (3, 3)
    assert "Layers: 1 read" in caplog.text


def test_the_image_that_the_booted_tests_derive(tmp_path: Path) -> None:
    machine = MockMachine(tmp_path / "machine")
    machine.install(machine.image("1"))
    before = update.read_facts(machine.sysroot).booted
    assert before is not None
    assert before.digest is not None
    layout = str(tmp_path / "derived")
    files = {"usr/lib/booted/version": b"2\n", "etc/new": b"new\n"}
    made = [
        derived_image.derive(
            before.digest,
            layout,
            files,
            repository=machine.sysroot.repository,
        )
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(os.listdir(f"{layout}/blobs/sha256")) == 3
    done = update.switch(machine.sysroot, parse_imgref(f"oci:{layout}:latest"))
    assert done.staged is not None
    assert done.staged.digest == made[0]
    assert (machine.etc(done.staged.id) / "new").read_bytes() == b"new\n"
