# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A mock machine, a registry and podman: where unified storage is tested. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootc import paths
from bootc.composefs.fsck import check_repository
from bootc.composefs.repository import Repository
from bootc.deploy import update
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.progress import Observer
from bootc.deploy.unified import find_unified_storage
from bootc.linux import mount
from bootc.podman.storage import BootcStorage
from tests.ocibuild import END, folder, member, write_layout
from tests.sysroots import ImageContent, MockMachine
from vmtests import podman
from vmtests.registry import Registry, serve

BIG = os.urandom(300_000)
COMMON = folder(b"./") + folder(b"usr/") + member(b"usr/big", BIG) + END
_REGISTRIES = "/etc/containers/registries.conf.d"


def use_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman and skopeo with the kit's settings, a storage and registries of this test alone."""
    for name, value in podman.environment().items():
        monkeypatch.setenv(name, value)
    storage = tmp_path / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{tmp_path}/default"\n'
        f'runroot = "{tmp_path}/default-run"\n'
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))


@contextmanager
def served_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with an image of one layer; podman trusts it in this mount namespace."""
    layout = tmp_path / "published"
    layout.mkdir()
    write_layout(layout, [COMMON])
    with serve(layout) as running:
        settings = tmp_path / "registries"
        settings.mkdir()
        (settings / "test.conf").write_text(
            f'[[registry]]\nlocation = "{running.address}"\ninsecure = true\n'
        )
        # The tests have a mount namespace of their own (conftest).
        with mount.mounted(str(settings), _REGISTRIES, None, flags=mount.MS_BIND):
            yield running


def publish(registry: Registry, version: str, tag: str = "1") -> str:
    """Let `tag` name an image of two layers, one of which all have; returns the reference."""
    content = ImageContent(version, extra={"usr/version": version.encode() * 10_000})
    write_layout(registry.layout, [COMMON, content.tar()], how="zstd", tag=tag)
    return f"docker://{registry.address}/os:{tag}"


def storage_of(machine: MockMachine) -> BootcStorage:
    found = find_unified_storage(machine.sysroot)
    assert found is not None
    return found


def upgrade(machine: MockMachine, observer: Observer | None = None) -> update.Outcome:
    return update.upgrade(machine.sysroot, update.UpgradeOptions(), observer=observer)


def reboot(machine: MockMachine) -> None:
    finalize_staged(machine.sysroot)
    machine.reboot()


def check(machine: MockMachine) -> None:
    machine.check_whole()
    with Repository.open(machine.root / paths.REPOSITORY) as repo:
        assert check_repository(repo).ok
