# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The frame of the comparisons with other programs: what they find, count and say."""

import random
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from bootc.errors import BootcError
from tests.interop import compare, programs, tally
from tests.interop.random_tars import make_tar
from tests.interop.tally import Tally


def fake(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_programs_are_found_by_variable_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(programs.C_TOOLS, raising=False)
    monkeypatch.delenv(programs.REFERENCE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootcError, match="cfsctl of the reference is not on PATH") as caught:
        programs.need_reference()
    assert "cargo install composefs-ctl" in (caught.value.hint or "")
    with pytest.raises(BootcError, match="composefs-info of the C tools") as caught:
        programs.need_c_tool("composefs-info")
    assert "Debian's package composefs" in (caught.value.hint or "")
    # A script of a Python package is one of ours.
    ours = fake(tmp_path / "cfsctl", "#!/usr/bin/python3\n")
    with pytest.raises(BootcError, match="not on PATH"):
        programs.need_reference()
    fake(ours)
    assert programs.need_reference() == str(ours)
    tool, other = fake(tmp_path / "mkcomposefs"), tmp_path / "other"
    other.mkdir()
    assert programs.need_c_tool() == str(tool)
    monkeypatch.setenv(programs.C_TOOLS, str(fake(other / "mkcomposefs")))
    assert programs.need_c_tool() == str(other / "mkcomposefs")
    with pytest.raises(BootcError, match=f"from {programs.C_TOOLS}, is no program"):
        programs.need_c_tool("composefs-info")


def test_tally_is_good_only_if_something_was_the_same() -> None:
    found = Tally()
    good = [found.is_good]
    found.refuse("one")
    good.append(found.is_good)
    assert found.compare("one", "a", "a", "here")
    good.append(found.is_good)
    assert not found.compare("two", "a", "b", "there")
    assert [*good, found.is_good] == [False, False, True, False]
    assert found.report().splitlines() == [
        "two: there: ours a, theirs b",
        "two: nothing was the same",
    ]
    assert found.table().splitlines()[1].split() == ["one", "1", "1", "0"]


def test_tally_command(capsys: pytest.CaptureFixture[str]) -> None:
    def same(found: Tally, rng: random.Random, count: int) -> None:
        for number in range(count):
            found.compare("numbers", rng.random() < 1, True, str(number))

    def missing(found: Tally, rng: random.Random, count: int) -> None:
        raise BootcError("no such program", hint="install it")

    assert tally.main("name", same, ["--seed", "5", "--count", "3"], count=9) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[0] == "name: seed 5, count 3"
    assert out.splitlines()[2].split() == ["numbers", "3", "0", "0"]
    assert tally.main("name", same, ["--count", "0"], count=9) == 1
    assert "nothing was compared" in capsys.readouterr().err
    assert tally.main("name", missing, [], count=9) == 1
    assert capsys.readouterr().err == "name: no such program (try: install it)\n"


def test_comparisons_are_named() -> None:
    assert {"c", "reference", "os"} <= set(compare.program_names())
    with pytest.raises(SystemExit, match="no program 'nothing'"):
        compare.main(["nothing"])


def test_comparison_without_its_program_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(programs.REFERENCE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compare.main(["--seed", "1", "--count", "1", "reference"]) == 1
    out, err = capfd.readouterr()
    assert "interop: seed 1" in out
    assert "could not be compared" in out.splitlines()[-1]
    assert len(err.splitlines()) == 1
    assert "compare_reference: " in err


def test_random_tars_are_equal_for_equal_seeds() -> None:
    for seed in range(20):
        tar = make_tar(random.Random(seed))
        assert tar == make_tar(random.Random(seed))
        with tarfile.open(fileobj=BytesIO(tar)) as found:
            assert found.getnames()[0] == "usr"
