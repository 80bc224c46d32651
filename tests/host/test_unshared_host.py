# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kit without root: files of a user's containers are read in podman's namespaces.

Needs root, to be another user, and podman with newuidmap and debugfs (e2fsprogs).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc import process
from tests.ocibuild import END, folder, header, member, padded
from tests.plainuser import CHECKOUT, USER, as_user, ordinary_user
from vmtests import paths, podman

pytestmark = pytest.mark.root
MODULES = b"usr/lib/modules/1"
EXPORT = """
import json, sys
from bootc.errors import BootcError
from vmtests import podman
from vmtests.tree import write_tree
from vmtests.unshared import call_unshared
tar, folder = sys.argv[1:]
name = "localhost/unshared-test:1"
image = podman.podman("import", "--quiet", tar, name).stdout.strip()
try:
    call_unshared(write_tree, image, name, folder)
except BootcError as error:
    print(json.dumps([str(error), error.hint]))
finally:
    print(json.dumps(podman.podman("unshare", "podman", "image", "mount").stdout))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with ordinary_user() as folder:
        yield folder


def export(place: Path, tar: bytes) -> tuple[Path, list[object]]:
    """The exported tree's folder, and what the user's program said."""
    made = place / "made"
    made.mkdir()
    (place / "tree.tar").write_bytes(tar)
    environment = {
        # The user can't write into the checkout: what root's podman needs here does.
        "CONTAINERS_CONF": str(
            place / CHECKOUT / podman.configuration().relative_to(paths.CHECKOUT)
        ),
        "HOME": str(place / "home"),
        "XDG_RUNTIME_DIR": str(place / "run"),
    }
    for name in ("home", "run"):
        (place / name).mkdir()
    for path in (made, place / "home", place / "run"):
        os.chown(path, USER, USER)
    argv = as_user(place, EXPORT, str(place / "tree.tar"), str(made))
    said = process.run(argv, env=environment, cwd="/").stdout
    return made, [json.loads(line) for line in said.splitlines()]


def test_a_users_image_keeps_its_owners(place: Path) -> None:
    tar = folder(b"usr") + folder(b"etc") + folder(MODULES) + folder(b"etc/secret", mode=0o700)
    tar += member(MODULES + b"/vmlinuz", b"kernel") + member(MODULES + b"/initramfs.img", b"initrd")
    owners = {"uid": b"0000005\0", "gid": b"0000007\0"}
    tar += header(b"etc/secret/key", 3, mode=0o600, numbers=owners) + padded(b"key") + END
    made, said = export(place, tar)
    assert said == [""]
    assert (made / "vmlinuz").read_bytes() == b"kernel"
    assert (made / "initramfs.img").read_bytes() == b"initrd"
    disk = str(made / "tree.ext4")
    shown = process.run(["debugfs", "-R", "stat /etc/secret/key", disk]).stdout
    assert "User:     5   Group:     7" in shown
    assert process.run(["debugfs", "-R", "cat /etc/secret/key", disk]).stdout == "key"


def test_a_refusal_comes_through_with_its_hint(place: Path) -> None:
    made, said = export(place, folder(b"usr") + END)
    name = "localhost/unshared-test:1"
    error = f"image {name} has no kernel: there is nothing at usr/lib/modules/<version>/vmlinuz"
    hint = "build it from a bootable base image (BOOTC_base), or unset BOOTC_base"
    assert said == [[error, hint], ""]
    assert os.listdir(made) == []
