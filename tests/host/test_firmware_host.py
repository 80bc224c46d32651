# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Firmware that a distribution ships as qcow2 files, as Fedora does. Needs qemu-img."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import ProcessError
from vmtests import paths
from vmtests.firmware import need_firmware


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of descriptors with one build of qcow2 files; the cache is a folder beside it."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    folder = tmp_path / "firmware"
    folder.mkdir()
    qemu_img = process.need_program("qemu-img", hint="apt-get install qemu-utils")
    mapping: dict[str, object] = {"device": "flash"}
    for name, role in (("code", "executable"), ("vars", "nvram-template")):
        (tmp_path / name).write_bytes(name[:1].encode() * (256 << 10) + bytes(256 << 10))
        made = folder / f"OVMF_{name}.qcow2"
        argv = [qemu_img, "convert", "-f", "raw", "-O", "qcow2", str(tmp_path / name), str(made)]
        process.run(argv, timeout=60)
        mapping[role] = {"filename": str(made), "format": "qcow2"}
    document = {
        "interface-types": ["uefi"],
        "mapping": mapping,
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": [],
    }
    (folder / "40-4m.json").write_text(json.dumps(document))
    return folder


def test_it_is_made_plain_once(firmware: Path, tmp_path: Path) -> None:
    found = need_firmware(secure=False, folders=[firmware])
    assert found.code.read_bytes() == (tmp_path / "code").read_bytes()
    assert found.vars_template.read_bytes() == (tmp_path / "vars").read_bytes()
    before = found.code.stat()
    assert need_firmware(secure=False, folders=[firmware]) == found
    assert found.code.stat().st_ino == before.st_ino
    assert len(list((tmp_path / "cache/firmware").iterdir())) == 2


def test_a_damaged_file_is_an_error_that_leaves_nothing(firmware: Path, tmp_path: Path) -> None:
    (firmware / "OVMF_code.qcow2").write_bytes(b"QFI")
    with pytest.raises(ProcessError, match="qemu-img convert"):
        need_firmware(secure=False, folders=[firmware])
    assert list((tmp_path / "cache/firmware").iterdir()) == []
