# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images that are bound to the system's are pulled by the podman of this machine. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.deploy import bound, update
from bootc.deploy.cleanup import clean_up
from bootc.deploy.finalize import finalize_staged
from bootc.deploy.unified import find_unified_storage
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError, chain_text, find_hint
from tests.hostpodman import served_registry
from tests.ocibuild import END, folder, member
from tests.sysroots import ImageContent, MockMachine, follow, started
from vmtests.registry import Registry

pytestmark = pytest.mark.root
APP = folder(b"./") + member(b"app", b"app" * 1000) + END
UNIT = "usr/share/containers/systemd/app.image"
NOTHING = UpgradeOptions()


@pytest.fixture
def registry(tmp_path: Path, own_podman: None) -> Iterator[Registry]:
    """It has `os:1`; podman is one with the kit's settings and storage of this test alone."""
    with served_registry(tmp_path, [APP], tag="1") as running:
        yield running


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> MockMachine:
    """Its path is short enough for a socket."""
    made = MockMachine(tmp_path_factory.mktemp("m") / "m")
    started(made)
    return made


def offer(machine: MockMachine, version: str, image: str) -> None:
    """Let the machine's updates be an image that binds another."""
    content = ImageContent(
        version,
        extra={UNIT: f"[Image]\nImage={image}\n".encode()},
        links={f"{bound.FOLDER}/app.image": f"/{UNIT}"},
    )
    follow(machine, version, content)


def test_bound_images_are_pulled_before_an_update_is_staged(
    machine: MockMachine, registry: Registry
) -> None:
    name = f"{registry.address}/os:1"
    offer(machine, "2", name)
    assert update.upgrade(machine.sysroot, NOTHING).ready
    storage = find_unified_storage(machine.sysroot)
    assert storage is not None
    found = storage.find_image(name)
    assert found is not None
    finalize_staged(machine.sysroot)
    second = machine.reboot()
    clean_up(machine.sysroot)
    assert storage.find_image(name) == found
    # What is there is not looked for again.
    registry.forget()
    offer(machine, "3", name)
    assert update.upgrade(machine.sysroot, NOTHING).ready
    assert not registry.requests
    finalize_staged(machine.sysroot)
    third = machine.reboot()
    # What isn't anywhere stages nothing.
    offer(machine, "4", f"{registry.address}/os:none")
    with pytest.raises(BootcError) as caught:
        update.upgrade(machine.sysroot, NOTHING)
    assert f"{registry.address}/os:none" in chain_text(caught.value)
    assert find_hint(caught.value) is not None
    assert not Path(machine.sysroot.staged_file).exists()
    assert machine.menu() == [third, second]
    machine.check_whole()
