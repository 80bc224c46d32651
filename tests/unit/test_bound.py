# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Images that are bound to the system's: which they are, and what an update does about them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bootc import paths
from bootc.deploy import bound, update
from bootc.deploy.update import UpgradeOptions
from bootc.errors import BootcError, FormatError, chain_text, find_hint
from tests.sysroots import ImageContent, MockMachine, everything, follow, started

APP = "quay.io/example/app:1"
IMAGE = f"[Unit]\nDescription=x\n[Image]\n# Image=commented\nImage = {APP}\n".encode()
CONTAINER = b"[Container]\nExec=x\nImage=quay.io/example/other@sha256:0\n[Install]\nImage=no\n"
UNITS = "usr/share/containers/systemd"


@pytest.fixture
def machine(tmp_path: Path) -> MockMachine:
    return MockMachine(tmp_path / "machine")


def content(links: dict[str, str], **units: bytes) -> ImageContent:
    return ImageContent(
        "2",
        extra={f"{UNITS}/{name.replace('_', '.')}": text for name, text in units.items()},
        links={f"{bound.FOLDER}/{name}": target for name, target in links.items()},
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lists of images that stagings would pull; nothing is pulled."""
    found: list[list[str]] = []
    monkeypatch.setattr(
        "bootc.deploy.stage.pull_bound_images",
        lambda sysroot, images: found.append([image.image for image in images]),
    )
    return found


def test_links_lead_to_units_and_units_to_images(
    machine: MockMachine, told: list[list[str]]
) -> None:
    started(machine)
    links = {
        "a.image": f"/{UNITS}/app.image",
        "b.container": "../../../share/containers/systemd/other.container",
        "c.image": "a.image",
        "up.image": f"../../../../../../{UNITS}/app.image",
    }
    follow(machine, "2", content(links, app_image=IMAGE, other_container=CONTAINER))
    assert update.upgrade(machine.sysroot, UpgradeOptions()).ready
    assert told == [[APP, "quay.io/example/other@sha256:0"]]


def test_an_image_that_binds_nothing_needs_nothing(
    machine: MockMachine, told: list[list[str]]
) -> None:
    started(machine)
    follow(machine, "2")
    assert update.upgrade(machine.sysroot, UpgradeOptions()).ready
    assert told == [[]]


@pytest.mark.parametrize(
    ("name", "target", "unit", "problem"),
    [
        ("a.image", f"/{UNITS}/none.image", b"", "does not lead to a file of the image"),
        ("a.image", "a.image", b"", "does not lead to a file of the image"),
        ("a.image", "..", b"", "does not lead to a file of the image"),
        ("a.image", f"/{UNITS}/a.image", b"[Container]\nImage=x\n", "Image.Image: is missing"),
        ("a.image", f"/{UNITS}/a.image", b"[Image]\nImage=\n", "Image.Image: is missing"),
        ("a.image", f"/{UNITS}/a.image", b"[Image]\nImage=x:%v\n", "has a specifier"),
        ("a.image", f"/{UNITS}/a.image", b"[Image]\nImage=x\nAuthFile=/y\n", "not supported"),
        ("a.pod", f"/{UNITS}/a.image", b"[Pod]\n", "neither a .image nor a .container"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(
    machine: MockMachine, name: str, target: str, unit: bytes, problem: str
) -> None:
    started(machine)
    follow(machine, "2", content({name: target}, a_image=unit))
    before = everything(machine.esp), everything(machine.run)
    with pytest.raises(BootcError) as caught:
        update.upgrade(machine.sysroot, UpgradeOptions())
    assert f"/{bound.FOLDER}/{name}" in chain_text(caught.value)
    assert problem in chain_text(caught.value)
    assert find_hint(caught.value) is not None
    assert (everything(machine.esp), everything(machine.run)) == before


def test_a_file_that_is_no_link_is_refused(machine: MockMachine) -> None:
    started(machine)
    follow(machine, "2", ImageContent("2", extra={f"{bound.FOLDER}/a.image": IMAGE}))
    with pytest.raises(BootcError) as caught:
        update.upgrade(machine.sysroot, UpgradeOptions())
    assert "is no symbolic link" in chain_text(caught.value)


def test_a_doubled_percent_sign_is_one() -> None:
    assert bound.parse_unit("[Image]\nImage=a%%b\n", "x.image") == "a%b"
    assert bound.parse_unit("[Image]\nImage=a\\\n/b\n", "x.image") == "a /b"
    with pytest.raises(FormatError):
        bound.parse_unit("[Image]\nImage=a%%%b\n", "x.image")


def test_without_podman_they_are_not_pulled_and_that_is_told(
    machine: MockMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started(machine)
    follow(machine, "2", content({"a.image": f"/{UNITS}/app.image"}, app_image=IMAGE))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert update.upgrade(machine.sysroot, UpgradeOptions()).ready
    assert "podman is not installed, so 1 images" in caplog.text
    assert APP in caplog.text


def test_what_is_there_is_not_pulled_again_and_a_failure_stages_nothing(
    machine: MockMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(machine)
    links = {"a.image": f"/{UNITS}/app.image"}
    follow(machine, "2", content(links, app_image=IMAGE))
    # A podman that fails at whatever it is asked for.
    fake = tmp_path / "bin" / "podman"
    fake.parent.mkdir()
    fake.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no network')\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(BootcError) as caught:
        update.upgrade(machine.sysroot, UpgradeOptions())
    assert find_hint(caught.value) is not None
    assert not Path(machine.sysroot.staged_file).exists()
    storage = machine.root / paths.STORAGE
    for folder in ("overlay-images", "overlay-layers"):
        (storage / folder).mkdir(parents=True)
    record = {"id": "0" * 64, "digest": f"sha256:{'1' * 64}", "names": [APP]}
    (storage / "overlay-images/images.json").write_text(json.dumps([record]))
    (storage / "overlay-layers/layers.json").write_text("[]")
    assert update.upgrade(machine.sysroot, UpgradeOptions()).ready
