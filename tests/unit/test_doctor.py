# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the doctor says, on computers that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmtests import accel, doctor
from vmtests.doctor import Severity


def fake_tools(folder: Path, *, qemu: str | None) -> Path:
    bin_ = folder / "bin"
    bin_.mkdir()
    names = ["qemu-img", "podman", "mmdebstrap", "skopeo", "mke2fs"]
    for name in names:
        (bin_ / name).write_text("#!/bin/sh\n")
    if qemu is not None:
        (bin_ / "qemu-system-x86_64").write_text(
            f'#!/bin/sh\necho "QEMU emulator version {qemu} (Debian)"\n'
        )
    for path in bin_.iterdir():
        path.chmod(0o755)
    return bin_


def find(found: list[doctor.Finding], word: str) -> doctor.Finding:
    return next(finding for finding in found if word in finding.what)


def test_old_qemu_is_as_bad_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{fake_tools(tmp_path, qemu='7.2.22')}:/usr/bin:/bin")
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    found = doctor.check(tmp_path / "state")
    old = find(found, "8.1")
    assert old.severity is Severity.MISSING
    assert "7.2" in old.what
    assert "bookworm-backports" in old.mend


def test_no_qemu_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    found = doctor.check(tmp_path / "state")
    missing = find(found, "qemu-system-x86_64")
    assert missing.severity is Severity.MISSING
    assert "qemu-system-x86" in missing.mend


def test_no_kvm_is_slow_but_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{fake_tools(tmp_path, qemu='10.0.2')}:/usr/bin:/bin")
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    found = doctor.check(tmp_path / "state")
    slow = find(found, "TCG")
    assert slow.severity is Severity.SLOW
    assert "modprobe" in slow.mend
    assert find(found, "QEMU 10.0").severity is Severity.FINE


def test_the_worst_comes_first_and_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(fake_tools(tmp_path, qemu=None)))
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "none")
    found = doctor.check(tmp_path / "state")
    order = [list(Severity).index(finding.severity) for finding in found]
    assert order == sorted(order)
    assert all(finding.mend for finding in found if finding.severity is not Severity.FINE)


@pytest.mark.parametrize(
    ("release", "command"),
    [
        ("ID=debian\nVERSION_ID=12\n", "apt-get install skopeo"),
        ('ID=ubuntu\nID_LIKE="debian"\n', "apt-get install skopeo"),
        ("ID=fedora\n", "dnf install containers-tools"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "dnf install containers-tools"),
    ],
)
def test_install_command_is_the_distributions(release: str, command: str) -> None:
    said = doctor.install_command(debian="skopeo", fedora="containers-tools", release=release)
    assert said == command


def test_install_command_elsewhere_names_both_packages() -> None:
    said = doctor.install_command(debian="ovmf", fedora="edk2-ovmf", release="ID=arch\n")
    assert "ovmf" in said
    assert "edk2-ovmf" in said


def test_versions_and_memory_are_parsed() -> None:
    assert doctor.parse_qemu_version("QEMU emulator version 10.0.2 (Debian)\n") == (10, 0)
    assert doctor.parse_qemu_version("nonsense") is None
    assert doctor.available_memory_mib("MemTotal: 9 kB\nMemAvailable:    2048000 kB\n") == 2000
    assert doctor.available_memory_mib("") is None


@pytest.mark.parametrize(
    ("script", "severity", "said"),
    [
        ("echo 0 1000 1; echo 1 100000 65536", Severity.FINE, "65536 subordinate ids"),
        ("echo 0 1000 1", Severity.MISSING, "podman has 0, an image takes 65535"),
        ("echo what", Severity.MISSING, "podman has 0, an image takes 65535"),
        ("echo cannot clone: EPERM >&2; exit 1", Severity.MISSING, "(cannot clone: EPERM)"),
    ],
)
def test_subordinate_ids_are_asked_of_podman(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, severity: Severity, said: str
) -> None:
    tools = fake_tools(tmp_path, qemu=None)
    (tools / "podman").write_text(f"#!/bin/sh\n{script}\n")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    [found] = doctor.check_subordinate_ids()
    assert found.severity is severity
    assert said in found.what
    assert bool(found.mend) is (severity is Severity.MISSING)
