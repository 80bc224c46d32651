# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Files that go, or are replaced: the name is durable before the old content's blocks are free."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bootc import fs


def held() -> set[str]:
    """Names of files without a link that this process keeps alive."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.endswith(" (deleted)") and "/test_" in target:
            found.add(os.path.basename(target.removesuffix(" (deleted)")))
    return found


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """What is synced, by name, and what is still held at that moment."""
    seen: list[tuple[str, set[str]]] = []
    sync: Callable[[int], None] = os.fsync

    def note(fd: int) -> None:
        seen.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), held()))
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    return seen


def test_remove_file(tmp_path: Path, syncs: list[tuple[str, set[str]]]) -> None:
    (tmp_path / "one").write_text("1")
    fs.remove_file(tmp_path / "one")
    assert syncs == [(tmp_path.name, {"one"})]
    assert held() == set()
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        fs.remove_file(tmp_path / "one")


def test_remove_tree(tmp_path: Path, syncs: list[tuple[str, set[str]]]) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp_path / "top" / name).write_text(name)
    fs.remove_tree(tmp_path / "top")
    assert syncs == [(tmp_path.name, {"top", "sub", "a", "b"})]
    assert held() == set()
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        fs.remove_tree(tmp_path / "top")
    assert len(syncs) == 1


def test_a_replaced_file_is_kept_until_its_folder_is_synced(
    tmp_path: Path, syncs: list[tuple[str, set[str]]]
) -> None:
    (tmp_path / "file").write_text("old")
    fs.write_atomic(tmp_path / "file", "new")
    assert [name for name, _ in syncs[1:]] == ["file", tmp_path.name]
    assert syncs[0][0].startswith(".file.")
    assert syncs[-1][1] == {"file"}
    assert held() == set()
    assert (tmp_path / "file").read_text() == "new"


def test_put_in_place(tmp_path: Path, syncs: list[tuple[str, set[str]]]) -> None:
    (tmp_path / "file").write_text("old")
    with (tmp_path / "file.new").open("w") as file:
        file.write("new")
        file.flush()
        fs.put_in_place(file.fileno(), str(tmp_path / "file.new"), str(tmp_path / "file"))
    assert [name for name, _ in syncs] == ["file.new", "file", tmp_path.name]
    assert syncs[-1][1] == {"file"}
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "new"
