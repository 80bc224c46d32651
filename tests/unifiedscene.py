# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A mock machine that was installed from a registry, and what it does with podman. Needs root."""

from __future__ import annotations

import os

from bootc import paths
from bootc.composefs.fsck import check_repository
from bootc.composefs.repository import Repository
from bootc.deploy import update
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.progress import Observer
from bootc.deploy.unified import find_unified_storage
from bootc.podman.storage import BootcStorage
from tests.ocibuild import END, folder, member, write_layout
from tests.sysroots import ImageContent, MockMachine
from vmtests.registry import Registry

BIG = os.urandom(300_000)
COMMON = folder(b"./") + folder(b"usr/") + member(b"usr/big", BIG) + END


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
