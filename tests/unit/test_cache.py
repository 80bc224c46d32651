# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The cache: entries are whole or not there, reasons are told, old ones go."""

import os
from pathlib import Path

import pytest

from vmtests import cache, paths
from vmtests.content import Inputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "CACHE", tmp_path)


def test_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "disk").write_text("whole")

    for _ in range(2):
        with cache.entry("disks", Inputs({"image": "1"}), make) as folder:
            assert (folder / "disk").read_text() == "whole"
    assert len(made) == 1


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "disk").write_text("half")
        raise RuntimeError("no space")

    inputs = Inputs({"image": "1"})
    with pytest.raises(RuntimeError, match="no space"), cache.entry("disks", inputs, make):
        pass
    assert not cache.is_cached("disks", inputs)
    assert list((tmp_path / "disks").iterdir()) == []


def test_reason_names_the_changed_input() -> None:
    with cache.entry("disks", Inputs({"image": "1", "filesystem": "ext4"}), lambda _folder: None):
        pass
    assert cache.why_not_cached("disks", Inputs({"image": "1", "filesystem": "ext4"})) == []
    assert cache.why_not_cached("disks", Inputs({"image": "1", "filesystem": "xfs"})) == [
        "filesystem: ext4 → xfs"
    ]
    assert cache.why_not_cached("trees", Inputs({"image": "1"})) == ["there is no cached trees yet"]


def test_least_recently_used_go_and_those_in_use_stay(tmp_path: Path) -> None:
    keys = [Inputs({"image": str(number)}) for number in range(cache.KEEP + 2)]
    with cache.entry("disks", keys[0], lambda _folder: None) as held:
        os.utime(held / "inputs.json", (1, 1))
        for number, inputs in enumerate(keys[1:], start=2):
            with cache.entry("disks", inputs, lambda _folder: None) as folder:
                os.utime(folder / "inputs.json", (number, number))
        assert held.exists()
    left = [inputs for inputs in keys if cache.is_cached("disks", inputs)]
    assert keys[-1] in left
    assert keys[1] not in left
