# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The menu's folders: what goes is durable in the right order, and a twin is never emptied."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from bootc import fs
from bootc.boot import bls, menu
from bootc.linux import libc

OLD = "title Old\nversion 1\nlinux /a\n"
NEW = "title New\nversion 2\nlinux /b\n"


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    entries = tmp_path / "loader/entries"
    entries.mkdir(parents=True)
    (entries / "bootc_os-1.conf").write_text(OLD)
    (entries / "other.conf").write_text("title Other\nefi /other.efi\n")
    return tmp_path


def names(esp: Path) -> list[str]:
    return sorted(path.name for path in (esp / "loader").iterdir())


def stage(esp: Path) -> None:
    menu.write_staged(str(esp), [bls.parse(NEW, "new"), bls.parse(OLD, "old")])


def test_exchange_puts_the_staged_menu_in_place(esp: Path) -> None:
    stage(esp)
    assert names(esp) == ["entries", "entries.staged"]
    menu.exchange(str(esp))
    assert names(esp) == ["entries"]
    texts = [path.read_text() for path in sorted((esp / "loader/entries").iterdir())]
    assert [text.split("\n")[0] for text in texts] == ["title Old", "title New", "title Other"]


def test_the_exchange_lies_between_two_syncs(esp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat's syncfs flushes no disk, so each is more than that, and nothing is removed before."""
    stage(esp)
    seen: list[str] = []
    sync, exchanged, remove = fs.sync_filesystem, libc.renameat2, fs.remove_tree

    def note_sync(path: fs.Path) -> None:
        seen.append(f"sync {os.path.basename(os.fspath(path))}")
        sync(path)

    def note_exchange(old_dir: int, old: str, new_dir: int, new: str, flags: int) -> None:
        seen.append(f"exchange {old} {new}")
        exchanged(old_dir, old, new_dir, new, flags)

    def note_removal(path: fs.Path) -> None:
        seen.append(f"remove {os.path.basename(os.fspath(path))}")
        remove(path)

    monkeypatch.setattr(fs, "sync_filesystem", note_sync)
    monkeypatch.setattr(libc, "renameat2", note_exchange)
    monkeypatch.setattr(fs, "remove_tree", note_removal)
    menu.exchange(str(esp))
    assert seen == [
        "sync loader",
        "exchange entries.staged entries",
        "sync loader",
        "remove entries.staged",
    ]


@pytest.mark.parametrize("name", ["entries.staged", "entries.staged.next"])
def test_a_twin_of_the_menu_is_put_aside(
    esp: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A symlink shows one folder under two names, as a torn exchange does on vfat."""
    (esp / "loader" / name).symlink_to("entries")
    with caplog.at_level(logging.WARNING):
        menu.discard_staged(str(esp))
    assert [entry for entry in names(esp) if not entry.startswith(f"{name}.twin-")] == ["entries"]
    assert len(names(esp)) == 2
    assert sorted(os.listdir(esp / "loader/entries")) == ["bootc_os-1.conf", "other.conf"]
    assert "fsck.vfat -a" in caplog.text
    stage(esp)
    menu.exchange(str(esp))
    texts = [path.read_text() for path in sorted((esp / "loader/entries").iterdir())]
    assert [text.split("\n")[0] for text in texts] == ["title Old", "title New", "title Other"]


def test_an_equal_menu_is_no_twin(esp: Path) -> None:
    """What an interruption after the exchange by files leaves."""
    staged = esp / "loader/entries.staged"
    staged.mkdir()
    for path in (esp / "loader/entries").iterdir():
        (staged / path.name).write_bytes(path.read_bytes())
    assert menu.discard_staged(str(esp))
    assert names(esp) == ["entries"]
    assert sorted(os.listdir(esp / "loader/entries")) == ["bootc_os-1.conf", "other.conf"]
