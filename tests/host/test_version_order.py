# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The versions along a real history, ordered by the tools that decide about upgrades.

Needs git; the RPM order needs rpm, whose own comparison it asks.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bootc import process

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "version.py"
IDENTITY = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("version_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


version = load_script()


class History:
    """A repository in `root` that is committed to step by step."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *args: str) -> None:
        process.run(["git", "-C", str(self.root), *args], env=IDENTITY, timeout=60)

    def name_release(self, release: str) -> None:
        (self.root / "bootc").mkdir(exist_ok=True)
        (self.root / "bootc" / "__init__.py").write_text(f'__version__ = "{release}"\n')

    def commit(self) -> tuple[str, str]:
        self.git("add", ".")
        self.git("commit", "-q", "--allow-empty", "-m", "work")
        return self.told()

    def told(self) -> tuple[str, str]:
        found = version.read_version(self.root)
        return found.pep440, found.rpm


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(tmp_path)
    made.git("init", "-q", "-b", "main")
    made.name_release("0.1.0")
    return made


def rpm_order(older: str, newer: str) -> int:
    """What rpm says of two versions: -1, 0 or 1."""
    script = f"%{{lua:print(rpm.vercmp('{older}', '{newer}'))}}"
    return int(process.run(["rpm", "--eval", script], timeout=30).stdout)


def walk(history: History) -> list[tuple[str, str]]:
    """The versions of a history with two releases, in the order that they were built."""
    told = [history.commit() for _ in range(11)]
    history.git("tag", "v0.1.0")
    told.append(history.told())
    told += [history.commit() for _ in range(2)]
    history.name_release("0.2.0")
    told += [history.commit() for _ in range(2)]
    history.git("tag", "-a", "-m", "release", "v0.2.0")
    told.append(history.told())
    told.append(history.commit())
    return told


def test_versions_of_a_history_only_go_up(history: History) -> None:
    told = walk(history)
    assert told[0][0].startswith("0.1.0.dev1+g")
    assert told[0][1].startswith("0.1.0~dev1^g")
    assert told[11] == ("0.1.0", "0.1.0")
    assert told[12][0].startswith("0.1.1.dev1+g")
    assert told[14][0].startswith("0.2.0.dev3+g")
    assert told[16] == ("0.2.0", "0.2.0")
    parse = importlib.import_module("packaging.version").Version
    for (older, _), (newer, _) in itertools.pairwise(told):
        assert parse(older) < parse(newer)
        assert str(parse(newer)) == newer
    if process.find_program("rpm") is None:
        pytest.skip("rpm is not installed: its order was not checked")
    for (_, older), (_, newer) in itertools.pairwise(told):
        assert rpm_order(older, newer) == -1, (older, newer)


def test_uncommitted_changes_sort_above_their_commit(history: History) -> None:
    clean = history.commit()
    (history.root / "new").write_text("")
    dirty = history.told()
    parse = importlib.import_module("packaging.version").Version
    assert dirty[0] == f"{clean[0]}.dirty"
    assert parse(clean[0]) < parse(dirty[0]) < parse("0.1.0")
    if process.find_program("rpm") is None:
        pytest.skip("rpm is not installed: its order was not checked")
    assert rpm_order(clean[1], dirty[1]) == rpm_order(dirty[1], "0.1.0") == -1


def test_a_tag_that_contradicts_the_file_is_refused(history: History) -> None:
    history.commit()
    history.git("tag", "v3.0")
    with pytest.raises(version.VersionError, match=r"tagged v3.0, but bootc/__init__.py says"):
        version.read_version(history.root)


def test_an_unpacked_archive_keeps_the_version_it_was_made_with(tmp_path: Path) -> None:
    (tmp_path / ".version").write_text("0.1.0.dev7+g0123456789\n")
    assert version.read_version(tmp_path).rpm == "0.1.0~dev7^g0123456789"


def test_the_script_needs_nothing_but_python(history: History) -> None:
    expected = history.commit()
    argv = [sys.executable, "-I", "-S", str(SCRIPT), "--root", str(history.root)]
    assert process.run(argv, timeout=60).stdout.strip() == expected[0]
    assert process.run([*argv, "--rpm"], timeout=60).stdout.strip() == expected[1]
