# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What counts as whole after a power cut: a mock system, and each way that it can be damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bootc import paths
from bootc.deploy import state
from tests.sysroots import ImageContent, MockMachine
from vmtests.cuts import find_problems, next_deployment, object_names

BIG = bytes(range(256)) * 4


@dataclass
class System:
    machine: MockMachine
    old: str
    new: str

    @property
    def esp(self) -> Path:
        return self.machine.esp

    @property
    def root(self) -> Path:
        return self.machine.root

    def entry(self, deployment: str) -> Path:
        for path in (self.esp / paths.ENTRIES).iterdir():
            if f"composefs=?{deployment}" in path.read_text():
                return path
        raise AssertionError

    def kernel(self, deployment: str) -> Path:
        return self.esp / paths.ESP_KERNELS / f"{paths.BOOT_PREFIX}{deployment}"

    def state(self, deployment: str) -> Path:
        return self.root / paths.state_dir(deployment)

    def object_of(self, data: bytes) -> Path:
        objects = self.root / paths.REPOSITORY / "objects"
        return next(p for p in objects.glob("*/*") if p.read_bytes() == data)

    def remove_manifests(self) -> None:
        for path in (self.root / paths.REPOSITORY / "streams").glob("oci-manifest*"):
            path.unlink()

    def problems(self, **options: list[str]) -> list[str]:
        return find_problems(self.machine.sysroot, **options)


@pytest.fixture
def system(tmp_path: Path) -> System:
    machine = MockMachine(tmp_path / "machine")
    images = []
    for version in ("1", "2"):
        content = ImageContent(
            version,
            kernel=f"kernel {version}".encode(),
            extra={"usr/share/big": BIG + version.encode()},
        )
        images.append(machine.install(machine.image(version, content)))
    return System(machine, *images)


def test_whole_system_has_no_problems(system: System) -> None:
    assert system.problems() == []
    assert next_deployment(system.machine.sysroot) == system.old


def test_leftovers_of_an_interrupted_update_are_no_problems(system: System) -> None:
    staged = system.esp / paths.ENTRIES_STAGED
    staged.mkdir()
    (staged / "bootc_half-1.conf").write_text("title ha")
    half = system.kernel("f" * 128)
    half.mkdir()
    (half / "vmlinuz").write_bytes(b"")
    (system.root / paths.state_dir("f" * 128)).mkdir()
    (system.root / paths.REPOSITORY / "streams/refs/oci").mkdir(parents=True, exist_ok=True)
    assert system.problems() == []


DAMAGE: dict[str, tuple[Callable[[System], object], str]] = {
    "no menu": (lambda s: shutil.rmtree(s.esp / paths.ENTRIES), "the menu has no entry"),
    "empty entry": (lambda s: s.entry(s.new).write_text(""), "boot entry bootc_mock-2-0.conf: "),
    "torn entry": (
        lambda s: os.truncate(s.entry(s.new), 40),
        "boot entry bootc_mock-2-0.conf: ",
    ),
    "no kernel": (lambda s: (s.kernel(s.new) / "vmlinuz").unlink(), "vmlinuz cannot be read"),
    "other initrd": (
        lambda s: (s.kernel(s.old) / "initrd").write_bytes(bytes(8)),
        "kernel and initrd have the digest",
    ),
    "no origin": (
        lambda s: (s.state(s.new) / f"{s.new}.origin").unlink(),
        "has no origin that can be read",
    ),
    "empty origin": (
        lambda s: os.truncate(s.state(s.new) / f"{s.new}.origin", 0),
        "has no origin that can be read",
    ),
    "no state": (lambda s: shutil.rmtree(s.state(s.old)), "the state is not whole"),
    "no link to var": (lambda s: (s.state(s.old) / "var").unlink(), "the state is not whole"),
    "empty file in etc": (
        lambda s: os.truncate(s.state(s.new) / "etc/hostname", 0),
        "/etc/hostname is empty, the image's has 5 bytes",
    ),
    "no image": (
        lambda s: (s.root / paths.REPOSITORY / "images" / s.new).unlink(),
        "the image cannot be used",
    ),
    "object gone": (lambda s: s.object_of(BIG + b"1").unlink(), "No such file"),
    "object short": (
        lambda s: os.truncate(s.object_of(BIG + b"2"), 100),
        "has 100 bytes, expected 1025",
    ),
    "object wrong": (
        lambda s: s.object_of(BIG + b"2").write_bytes(bytes(1025)),
        "its content has the digest",
    ),
    "no repository": (
        lambda s: shutil.rmtree(s.root / paths.REPOSITORY),
        "the repository cannot be read",
    ),
    "manifest gone": (
        lambda s: s.remove_manifests(),
        "status knows no image",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_found(system: System, name: str) -> None:
    damage, said = DAMAGE[name]
    damage(system)
    assert [line for line in system.problems() if said in line], system.problems()


def test_content_of_known_objects_is_not_read_again(system: System) -> None:
    known = object_names(system.machine.sysroot)
    assert len(known) > 8
    system.object_of(BIG + b"2").write_bytes(bytes(1025))
    assert system.problems(known=list(known)) == []
    assert len(system.problems(known=[])) == 1


def test_object_without_verity_is_told(system: System) -> None:
    assert system.problems(unsealed=["ab/cd"]) == ["object ab/cd has no fs-verity"]


def test_rollback_is_seen_as_the_next_deployment(system: System) -> None:
    first, second = system.entry(system.old), system.entry(system.new)
    one, other = first.read_text(), second.read_text()
    first.write_text(other.replace("bootc-mock-1", "bootc-mock-0"))
    second.write_text(one.replace("bootc-mock-0", "bootc-mock-1"))
    assert next_deployment(system.machine.sysroot) == system.new
    assert system.problems() == []
    assert state.read_origin(str(system.root), system.new) is not None
