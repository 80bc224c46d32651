# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Content keys: every input counts, and a change is told by its name."""

from pathlib import Path

from vmtests.content import Inputs, files_digest, package_files, text_digest


def test_key_depends_on_every_name_and_value() -> None:
    one = Inputs({"a": "1", "b": "2"})
    assert one.key == Inputs({"b": "2", "a": "1"}).key
    assert len({one.key, Inputs({"a": "1", "b": "3"}).key, Inputs({"a": "1", "c": "2"}).key}) == 3


def test_changes_name_what_is_new_gone_or_different() -> None:
    now = Inputs({"same": "x", "new": "n", "other": "2"})
    assert now.changes({"same": "x", "gone": "g", "other": "1"}) == [
        "gone: gone",
        "new: new",
        "other: 1 → 2",
    ]
    assert now.changes(now.digests) == []


def test_files_digest_sees_names_contents_and_the_executable_bit(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("one")
    first = files_digest(tmp_path, [file])
    assert first == files_digest(tmp_path, [file])
    file.chmod(0o755)
    second = files_digest(tmp_path, [file])
    file.write_text("two")
    third = files_digest(tmp_path, [file])
    assert len({first, second, third}) == 3


def test_package_files_leave_compiled_ones_out(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.cpython-311.pyc").write_text("")
    (tmp_path / "a.py").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "unit.service").write_text("")
    names = sorted(path.name for path in package_files(tmp_path))
    assert names == ["a.py", "unit.service"]


def test_short_texts_stand_for_themselves() -> None:
    assert text_digest("trixie") == "trixie"
    assert len(text_digest("two words")) == 12
