# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Firmware descriptors: which build is chosen, and what is passed by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmtests.domain import DiskFormat
from vmtests.firmware import find_firmware, iter_firmware


def describe(
    folder: Path,
    name: str,
    *,
    features: list[str],
    exists: bool = True,
    kind: str = "uefi",
    form: str = "raw",
    **changes: Any,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    code, template = folder / f"{name}.code", folder / f"{name}.vars"
    if exists:
        code.touch()
        template.touch()
    document: dict[str, Any] = {
        "interface-types": [kind],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": form},
            "nvram-template": {"filename": str(template), "format": form},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": features,
    }
    (folder / f"{name}.json").write_text(json.dumps({**document, **changes}))


def test_secure_and_plain_builds_are_told_apart(tmp_path: Path) -> None:
    describe(tmp_path, "40-ms", features=["secure-boot", "enrolled-keys", "requires-smm"])
    describe(tmp_path, "50-sb", features=["secure-boot", "requires-smm"])
    describe(tmp_path, "60-plain", features=[])
    secure = find_firmware(secure=True, folders=[tmp_path])
    plain = find_firmware(secure=False, folders=[tmp_path])
    assert secure is not None
    assert secure.code.name == "50-sb.code"
    assert plain is not None
    assert plain.vars_template.name == "60-plain.vars"


def test_builds_for_others_or_without_files_are_passed_by(tmp_path: Path) -> None:
    arm = [{"architecture": "aarch64", "machines": ["virt-*"]}]
    describe(tmp_path, "10-arm", features=[], targets=arm)
    describe(tmp_path, "20-gone", features=[], exists=False)
    describe(tmp_path, "30-bios", features=[], kind="bios")
    describe(tmp_path, "40-memory", features=[], mapping={"device": "memory", "filename": "x"})
    (tmp_path / "50-broken.json").write_text("{")
    assert list(iter_firmware([tmp_path])) == []
    assert find_firmware(secure=False, folders=[tmp_path]) is None


def test_earlier_folder_hides_later_one(tmp_path: Path) -> None:
    describe(tmp_path / "etc", "60-x", features=[])
    describe(tmp_path / "usr", "60-x", features=[])
    describe(tmp_path / "usr", "70-y", features=[])
    (tmp_path / "etc" / "70-y.json").write_text("")
    found = list(iter_firmware([tmp_path / "etc", tmp_path / "usr"]))
    assert [build.code.parent.name for build in found] == ["etc"]


def test_a_plain_build_comes_before_one_of_qcow2(tmp_path: Path) -> None:
    describe(tmp_path, "40-4m", features=[], form="qcow2")
    only = find_firmware(secure=False, folders=[tmp_path])
    assert only is not None
    assert (only.code.name, only.format) == ("40-4m.code", DiskFormat.QCOW2)
    describe(tmp_path, "41-2m", features=[])
    describe(tmp_path, "42-2m", features=[])
    describe(tmp_path, "10-new", features=[], form="vmdk")
    plain = find_firmware(secure=False, folders=[tmp_path])
    assert plain is not None
    assert (plain.code.name, plain.format) == ("41-2m.code", DiskFormat.RAW)
