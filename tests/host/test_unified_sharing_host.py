# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What bootc's storage and its repository share on file systems of this machine.

Needs root, and file systems with reflinks (btrfs, xfs) that the kernel mounts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bootc import process
from bootc.deploy import update
from bootc.deploy.set_unified import set_unified
from bootc.deploy.unified import Unify, copies_allowed, find_unified_storage
from bootc.errors import BootcError
from bootc.linux import mount, reflink
from bootc.oci.reference import parse_imgref
from bootc.podman.storage import BootcStorage
from tests.hostpodman import served_registry
from tests.sysroots import MockMachine
from tests.unifiedscene import (
    BIG,
    COMMON,
    check,
    publish,
    reboot,
    storage_of,
    upgrade,
)
from vmtests.registry import Registry

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_podman")]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with served_registry(tmp_path, [COMMON]) as running:
        yield running


@pytest.fixture
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that has no reflinks, whatever the tests' folder has."""
    folder = tmp_path_factory.mktemp("memory")
    with mount.mounted("tmpfs", str(folder), "tmpfs"):
        yield folder


def test_without_reflinks_nothing_is_begun(in_memory: Path, registry: Registry) -> None:
    machine = MockMachine(in_memory / "m")
    machine.install(publish(registry, "1"))
    target = parse_imgref(publish(registry, "2", "2"))
    registry.forget()
    with pytest.raises(BootcError, match="has no reflinks") as caught:
        update.switch(machine.sysroot, target, unify=Unify(wanted=True))
    assert "--allow-copy" in str(caught.value.hint)
    with pytest.raises(BootcError, match="has no reflinks"):
        set_unified(machine.sysroot)
    assert find_unified_storage(machine.sysroot) is None
    assert not copies_allowed(str(machine.root))
    assert {one.agent.partition("/")[0] for one in registry.requests} == {"skopeo"}
    assert machine.menu() == [machine.sysroot.booted]


@pytest.fixture(params=["btrfs", "xfs"])
def reflinks(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A file system that has them."""
    # A short path: a socket lies below it.
    disk, mounted = tmp_path / "disk", tmp_path_factory.mktemp("m")
    with disk.open("wb") as image:
        image.truncate(512 << 20)
    process.run([f"mkfs.{request.param}", str(disk)])
    process.run(["mount", "-o", "loop", str(disk), str(mounted)])
    try:
        yield mounted
    finally:
        process.run(["umount", str(mounted)])


def assert_shared(storage: BootcStorage, *names: str) -> None:
    """Extents of these files, of all images of the storage, are somebody else's, too."""
    for name in names:
        stored = list(Path(storage.path).glob(f"overlay/*/diff/{name}"))
        assert stored, name
        for path in stored:
            assert "shared" in process.run(["filefrag", "-v", str(path)]).stdout, path


def test_what_was_there_is_shared_when_a_system_becomes_unified(
    reflinks: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine = MockMachine(reflinks / "m")
    machine.install(publish(registry, "1"))
    assert set_unified(machine.sysroot).changed
    storage = storage_of(machine)
    assert_shared(storage, "usr/big", "usr/version")
    assert [path.read_bytes() for path in Path(storage.path).glob("overlay/*/diff/usr/big")] == [
        BIG
    ]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    check(machine)


def test_where_nothing_can_be_shared_that_is_said_once(
    in_memory: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    machine = MockMachine(in_memory / "m")
    machine.install(publish(registry, "1"))
    assert set_unified(machine.sysroot, allow_copy=True).changed
    [said] = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert said.startswith("the files of the image are stored twice, until updates")
    check(machine)


def test_files_that_differ_are_never_shared(reflinks: Path) -> None:
    size = 40 << 10
    (reflinks / "one").write_bytes(bytes(size))
    (reflinks / "same").write_bytes(bytes(size))
    (reflinks / "other").write_bytes(bytes(size - 1) + b"1")
    with ExitStack() as stack:
        one, same, other = (
            stack.enter_context(open(reflinks / name, "rb")).fileno()
            for name in ("one", "same", "other")
        )
        assert reflink.share(same, one, size) == size
        assert reflink.share(other, one, size) == 0
    assert (reflinks / "other").read_bytes() == bytes(size - 1) + b"1"


def test_files_share_extents_where_they_can(reflinks: Path, registry: Registry) -> None:
    machine = MockMachine(reflinks / "m")
    machine.install(publish(registry, "1"))
    target = parse_imgref(publish(registry, "2", "2"))
    update.switch(machine.sysroot, target, unify=Unify(wanted=True))
    assert not copies_allowed(str(machine.root))
    storage = storage_of(machine)
    [file] = Path(storage.path).glob("overlay/*/diff/usr/version")
    assert file.read_bytes() == b"2" * 10_000
    [big] = Path(storage.path).glob("overlay/*/diff/usr/big")
    assert big.read_bytes() == BIG
    reboot(machine)
    publish(registry, "3", "2")
    upgrade(machine)
    assert len(list(Path(storage.path).glob("overlay/*/diff/usr/version"))) == 2
    assert_shared(storage, "usr/version")
    check(machine)
