# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The boot entries of deployments: names, content, and what an ESP holds."""

import errno
import os
from pathlib import Path

import pytest

from bootc import fs
from bootc.boot import bls, entries, loader_info, menu
from bootc.boot.entries import OsRelease
from bootc.errors import FormatError
from bootc.linux import libc
from bootc.spec import Bootloader

ID = "0f" * 64
OTHER = "1e" * 64


def test_os_release() -> None:
    text = 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n# c\nVERSION_ID="13"\nnonsense\n'
    expected = OsRelease(os_id="debian", title="Debian GNU/Linux 13 (trixie)", version="13")
    assert entries.parse_os_release(text) == expected


def test_os_release_defaults() -> None:
    assert entries.parse_os_release("ID=\nVERSION='open\n") == OsRelease()
    assert entries.parse_os_release('VERSION="9 (Plow)"').version == "9 (Plow)"


def test_names_and_sort_keys() -> None:
    release = OsRelease(os_id="centos-stream", version="10 (Coughlan)")
    new = entries.make_entry(release, ID, [f"composefs={ID}"])
    old = entries.make_entry(OsRelease(), OTHER, [f"composefs={OTHER}"])
    assert [(name, entry.sort_key) for name, entry in entries.arrange([new, old])] == [
        ("bootc_centos_stream-10__Coughlan_-1.conf", "bootc-centos-stream-0"),
        (f"bootc_centos_stream-{OTHER}-0.conf", "bootc-centos-stream-1"),
    ]
    assert entries.arrange([old])[0][0] == f"bootc_bootc-{OTHER}-1.conf"


def test_any_number_of_entries_is_sorted_as_wanted() -> None:
    ids = [f"{number:0128x}" for number in range(12)]
    wanted = [
        entries.make_entry(OsRelease(os_id=f"os{9 - number % 3}"), one, [f"composefs={one}"])
        for number, one in enumerate(ids)
    ]
    assert [
        entries.deployment_of(entry, name).digest
        for name, entry in bls.menu_order(entries.arrange(wanted))
    ] == ids


@pytest.mark.parametrize(
    ("os_id", "version"), [("long-" * 60, "1"), ("debian", "13." * 120), ("../x", "/" * 300)]
)
def test_names_are_cut_to_what_a_file_system_takes(
    tmp_path: Path, os_id: str, version: str
) -> None:
    release = entries.OsRelease(os_id=os_id, title="T", version=version)
    (tmp_path / "loader").mkdir()
    wanted = [entries.make_entry(release, one, [f"composefs={one}"]) for one in (ID, OTHER)]
    menu.write_staged(str(tmp_path), wanted)
    menu.exchange(str(tmp_path))
    [first, second] = sorted(os.listdir(tmp_path / "loader/entries"), reverse=True)
    assert first.endswith("-1.conf")
    assert second.endswith("-0.conf")
    assert first[:-7] == second[:-7]
    with fs.open_directory(tmp_path) as esp:
        read = entries.read_entries(esp)
    assert [entries.deployment_of(entry, name).digest for name, entry in read] == [ID, OTHER]
    assert [entry.version for _, entry in read] == [version, version]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_staged_menu_is_replaced_when_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(libc, "renameat2", _refuse)
    esp = str(tmp_path)
    (tmp_path / "loader/entries").mkdir(parents=True)
    release = OsRelease(os_id="debian", version="13")
    for deployment in (ID, OTHER):
        made = entries.make_entry(release, deployment, [f"composefs={deployment}"])
        before = _staged(tmp_path)
        menu.prepare_staged(esp, [made])
        assert _staged(tmp_path) == before
        menu.put_staged(esp)
        assert _staged(tmp_path) == [deployment]
    menu.discard_next(esp)
    assert sorted(os.listdir(tmp_path / "loader")) == ["entries", "entries.staged"]


def _refuse(*_: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _staged(esp: Path) -> list[str]:
    with fs.open_directory(esp) as fd:
        found = entries.read_entries(fd, "loader/entries.staged")
    return [entries.deployment_of(entry, name).digest for name, entry in found]


def test_entry_text() -> None:
    release = OsRelease(os_id="debian", title="Debian 13", version="13")
    entry = entries.make_entry(release, ID, ["rw", f"composefs={ID}"])
    assert entry.to_text() == (
        "title Debian 13\n"
        "version 13\n"
        f"linux /EFI/Linux/bootc_composefs-{ID}/vmlinuz\n"
        f"initrd /EFI/Linux/bootc_composefs-{ID}/initrd\n"
        f"options rw composefs={ID}\n"
        "sort-key bootc-debian-0\n"
    )


def test_deployment_of_a_uki_is_in_its_name() -> None:
    entry = bls.Entry(version="1", efi=f"/EFI/Linux/bootc/bootc_composefs-{ID}.efi")
    assert entries.deployment_of(entry, "a.conf").digest == ID
    with pytest.raises(FormatError, match="not named after a deployment"):
        entries.deployment_of(bls.Entry(version="1", uki="/EFI/Linux/arch.efi"), "a.conf")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_read_entries_in_menu_order_and_only_ours(tmp_path: Path) -> None:
    folder = tmp_path / "loader/entries"
    folder.mkdir(parents=True)
    release = OsRelease(os_id="debian", version="13")
    made = [
        entries.make_entry(release, deployment, ["rw", f"composefs=?{deployment}"])
        for deployment in (ID, OTHER)
    ]
    for name, entry in entries.arrange(made):
        (folder / name).write_text(entry.to_text())
    (folder / "bootc_debian-13-7.conf").write_text("title cut off\noptions composefs=")
    (folder / "arch.conf").write_text("title Arch\nlinux /vmlinuz\n")
    (folder / "memtest.conf").write_text(
        "title composefs is not used here\nversion 1\nefi /m.efi\n"
    )
    (folder / "note.txt").write_text("composefs=")
    fd = _open(tmp_path)
    try:
        found = entries.read_entries(fd)
        assert entries.read_entries(fd, "loader/entries.staged") == []
    finally:
        os.close(fd)
    assert [entries.deployment_of(entry, name).digest for name, entry in found] == [ID, OTHER]
    assert all(entries.deployment_of(entry, name).insecure for name, entry in found)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("systemd-boot 257.9-1~deb13u1", Bootloader.SYSTEMD),
        ("GRUB CC 2.12", Bootloader.GRUB_CC),
        ("GRUB 2.12", Bootloader.GRUB),
        (None, Bootloader.GRUB),
    ],
)
def test_boot_loader_by_its_variable(
    tmp_path: Path, info: str | None, expected: Bootloader
) -> None:
    if info is not None:
        file = tmp_path / "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
        file.write_bytes(b"\6\0\0\0" + info.encode("utf-16-le") + b"\0\0")
    assert loader_info.detect(str(tmp_path)) is expected
