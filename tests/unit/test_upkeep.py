# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The verbs that look after a machine: what they print, and what a check of a system finds."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bootc import paths
from bootc.cli import main, parser, render
from bootc.composefs.repository import Repository
from bootc.deploy.check import check_system
from bootc.deploy.etc_changes import read_etc_changes
from bootc.deploy.etc_merge import Conflict, ConflictKind, MergePlan
from bootc.deploy.sysroot import read_menu
from tests.sysroots import ImageContent, MockMachine

TOP = Path(__file__).resolve().parents[2]


def run(*argv: str) -> int:
    return main.main(list(argv))


# -- The merge of /etc


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """PRISTINE, CURRENT and NEW with one of each change."""
    for name, files in {
        "pristine": {"same": "1", "mine": "1", "gone": "1"},
        "current": {"same": "1", "mine": "2", 'fr"esh\n': "1"},
        "new": {"same": "1", "mine": "1", "gone": "1", "more": "1"},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
    return [str(tmp_path / name) for name in ("pristine", "current", "new")]


DIFF = 'Added "fr\\"esh\\n"\nModified "mine"\nRemoved "gone"\n'


def test_dir_diff_prints_the_changes_and_merges_when_told(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("internals", "dir-diff", *folders) == 0
    assert capsys.readouterr().out == DIFF
    assert sorted(path.name for path in Path(folders[2]).iterdir()) == [
        "gone",
        "mine",
        "more",
        "same",
    ]
    assert run("internals", "dir-diff", *folders, "--merge") == 0
    assert capsys.readouterr().out == DIFF
    assert sorted(path.name for path in Path(folders[2]).iterdir()) == [
        'fr"esh\n',
        "mine",
        "more",
        "same",
    ]
    assert (Path(folders[2]) / "mine").read_text() == "2"


def test_dir_diff_shows_conflicts_and_refuses_to_merge_them(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(folders[2]) / "mine").unlink()
    (Path(folders[2]) / "mine").mkdir()
    assert run("internals", "dir-diff", *folders) == 0
    assert 'Unmergable "mine"\n' in capsys.readouterr().out
    assert run("internals", "dir-diff", *folders, "--merge") == 1
    said = capsys.readouterr().err
    assert "error: Merge conflicts found in etc: File 'mine' now defaults to a directory" in said
    assert (Path(folders[2]) / "gone").exists()


def test_colors_are_for_terminals() -> None:
    plan = MergePlan(
        added=("a",), conflicts=(Conflict(path="b", now=ConflictKind.FILE),), removed=("c",)
    )
    assert render.etc_changes(plan) == 'Added "a"\nRemoved "c"\nUnmergable "b"\n'
    assert render.etc_changes(plan, color=True).startswith('\x1b[32mAdded\x1b[39m "a"\n')


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("a b", '"a b"'),
        ('a"\\', '"a\\"\\\\"'),
        ("\udcff\x07", '"\\xFF\\u{7}"'),
        ("é\t", '"é\\t"'),
    ],
)
def test_paths_are_quoted_for_debugging(path: str, quoted: str) -> None:
    assert render.debug_quoted(path) == quoted


def test_changes_of_etc_are_those_since_the_image(machine: MockMachine) -> None:
    one, two = machine.menu()
    assert read_etc_changes(machine.sysroot).is_empty
    etc = machine.etc(one)
    (etc / "hostname").write_text("mine\n")
    (etc / "more").mkdir()
    (etc / "more/file").write_text("x" * 1000)
    (etc / "dir").mkdir()
    (etc / "issue").unlink()
    assert read_etc_changes(machine.sysroot) == MergePlan(
        added=("dir", "more", "more/file"), modified=("hostname",), removed=("issue",)
    )
    machine.stage_mark(two)
    assert read_etc_changes(machine.sysroot).conflicts == (
        Conflict(path="dir", now=ConflictKind.FILE),
    )


# -- Schemas


def _without_descriptions(value: Any, *, names: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_descriptions(item, names=key in ("properties", "$defs") and not names)
            for key, item in value.items()
            if names or key != "description"
        }
    if isinstance(value, list):
        return [_without_descriptions(item) for item in value]
    return value


def test_the_schema_of_the_host_is_the_public_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("internals", "print-json-schema", "--of", "host") == 0
    printed = json.loads(capsys.readouterr().out)
    public = json.loads((TOP / "tmt/tests/booted/host-v1.schema.json").read_text())
    assert printed == _without_descriptions(public)


def test_the_schema_of_the_progress_names_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("internals", "print-json-schema", "--of", "progress") == 0
    text = capsys.readouterr().out
    assert json.loads(text)["$schema"]
    for word in ("Start", "ProgressBytes", "ProgressSteps"):
        assert f'"{word}"' in text


# -- The parser


@pytest.mark.parametrize(
    "argv",
    [
        ["internals", "prep-soft-reboot"],
        ["internals", "prep-soft-reboot", "--reset", "a"],
        ["internals", "print-json-schema"],
        ["internals", "print-json-schema", "--of", "cat"],
        ["status", "--booted", "--sysroot", "/mnt"],
        ["internals", "dir-diff", "a", "b"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse(argv)
    assert caught.value.code == 2


def test_both_spellings_of_usr_overlay() -> None:
    for name in ("usr-overlay", "usroverlay"):
        assert parser.parse([name, "--read-only"]).verb == "usr-overlay"


# -- Checks


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    machine = MockMachine(tmp_path / "m")
    for version in ("1", "2"):
        etc = {"hostname": b"mock\n", "issue": b"long " * 50}
        if version == "2":
            etc["dir"] = b"a file here"
        content = ImageContent(version, kernel=version.encode() * 99, etc=etc)
        machine.install(machine.image(version, content))
    return machine


def problems(machine: MockMachine) -> list[str]:
    return [line for check in check_system(machine.sysroot) for line in check.problems]


def test_a_sound_system_has_no_problems(machine: MockMachine) -> None:
    assert [(check.name, check.ok) for check in check_system(machine.sysroot)] == [
        ("deployments", True),
        ("composefs", True),
    ]


def test_each_part_that_is_missing_is_a_problem(machine: MockMachine) -> None:
    one, two = machine.menu()
    entry = read_menu(machine.sysroot, paths.ENTRIES)[1][1]
    assert entry.linux is not None
    (machine.esp / entry.linux.lstrip("/")).unlink()
    (machine.root / paths.origin_file(two)).unlink()
    shutil.rmtree(machine.etc(two))
    (machine.root / paths.REPOSITORY / "images" / two).unlink()
    with Repository.open(machine.sysroot.repository) as repo:
        for tag, _ in list(repo.tags()):
            repo.untag(tag)
    found = problems(machine)
    for part in (
        f"{two[:16]}…: {entry.linux} is not on the ESP",
        f"{machine.etc(two)} is missing",
        f"{two[:16]}…: its origin is missing or damaged",
        f"{two[:16]}…: its image is not in the repository",
        "has no tag that keeps it",
    ):
        assert any(part in line for line in found), part
    assert not any(line.startswith(f"{one[:16]}") and "origin" in line for line in found)


def test_damage_in_the_repository_is_found(machine: MockMachine) -> None:
    objects = machine.root / paths.REPOSITORY / "objects"
    victim = max((path for path in objects.rglob("*") if path.is_file()), key=str)
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes() + b"x")
    assert any("digest" in line for line in problems(machine))


def test_without_a_repository_that_is_said(machine: MockMachine) -> None:
    (machine.root / paths.REPOSITORY).rename(machine.root / "elsewhere")
    assert len(problems(machine)) == 1
