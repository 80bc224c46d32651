# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The KVM probe against fake emulators: programs that end as QEMU would."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bootc.errors import BootcError
from vmtests import accel
from vmtests.domain import Accel


def fake_qemu(folder: Path, body: str) -> str:
    """A program that answers --version, and else notes its call and runs `body`."""
    path = folder / "qemu"
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "QEMU emulator version 10.0.2"; exit; fi\n'
        f'echo call >> "{folder}/calls"\n{body}\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "KVM_DEVICE", device)
    return device


def test_boot_sector_is_bootable() -> None:
    sector = accel.boot_sector()
    assert len(sector) == 1 << 20
    assert sector[510:512] == b"\x55\xaa"
    assert sector[0x80:0x90] == bytes.fromhex("0000000000000000 00000000009a2000")
    assert sector[0x90:0x96] == bytes.fromhex("0f00 807c0000")
    assert sector[0x6B:0x6D] == bytes.fromhex("48b8")  # where the jump to 64 bits leads


def test_kvm_is_used_when_the_probe_guest_ran(tmp_path: Path, kvm: Path) -> None:
    verdict = accel.choose_accel(tmp_path / "c", emulator=fake_qemu(tmp_path, "exit 85"))
    assert verdict.accel is Accel.KVM


def test_a_kvm_that_fails_is_not_used(tmp_path: Path, kvm: Path) -> None:
    qemu = fake_qemu(tmp_path, "echo 'failed to set MSR 0x10a' >&2; exit 1")
    verdict = accel.choose_accel(tmp_path / "c", emulator=qemu)
    assert verdict.accel is Accel.TCG
    assert "failed to set MSR 0x10a" in verdict.reason


def test_a_kvm_that_hangs_is_not_used(
    tmp_path: Path, kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "PROBE_LIMIT", 0.5)
    start = time.monotonic()
    verdict = accel.choose_accel(tmp_path / "c", emulator=fake_qemu(tmp_path, "sleep 60"))
    assert verdict.accel is Accel.TCG
    assert time.monotonic() - start < 20


def test_a_kvm_slower_than_emulation_is_not_used(tmp_path: Path, kvm: Path) -> None:
    body = 'case "$*" in *"-accel kvm"*) sleep 4;; esac; exit 85'
    verdict = accel.choose_accel(tmp_path / "c", emulator=fake_qemu(tmp_path, body))
    assert verdict.accel is Accel.TCG
    assert "no end after 1 s (emulation: 0." in verdict.reason


def test_the_verdict_is_kept_until_something_changes(tmp_path: Path, kvm: Path) -> None:
    qemu = fake_qemu(tmp_path, "exit 1")
    calls = tmp_path / "calls"
    first = accel.choose_accel(tmp_path / "c", emulator=qemu)
    assert accel.choose_accel(tmp_path / "c", emulator=qemu) == first
    assert calls.read_text().count("call") == 2  # emulation's turn and KVM's
    kvm.unlink()
    (tmp_path / "other").touch()
    kvm.touch()
    accel.choose_accel(tmp_path / "c", emulator=qemu)
    assert calls.read_text().count("call") == 4


def test_a_broken_verdict_file_is_no_verdict(tmp_path: Path, kvm: Path) -> None:
    qemu = fake_qemu(tmp_path, "exit 85")
    cache = tmp_path / "c"
    accel.choose_accel(cache, emulator=qemu)
    (cache / "accel.json").write_text("{")
    assert accel.choose_accel(cache, emulator=qemu).accel is Accel.KVM
    kept = json.loads((cache / "accel.json").read_text())
    assert kept["accel"] == "kvm"


def test_without_the_device_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    verdict = accel.choose_accel(tmp_path / "c", emulator=fake_qemu(tmp_path, "exit 85"))
    assert verdict.accel is Accel.TCG
    assert not (tmp_path / "calls").exists()


def test_without_qemu_it_says_how_to_get_it(tmp_path: Path, kvm: Path) -> None:
    with pytest.raises(BootcError) as caught:
        accel.choose_accel(tmp_path / "c", emulator=str(tmp_path / "no-qemu"))
    assert caught.value.hint is not None
    assert "qemu" in caught.value.hint
