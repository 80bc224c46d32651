# SPDX-License-Identifier: Apache-2.0 OR MIT
"""packaging/base/customize makes a bootable image of a tree, and leaves alone what it must."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootc import process
from vmtests.base import RECIPE

MODULES = "usr/lib/modules/6.1-cloud"
HOME = ("home", "srv", "mnt", "opt", "media", "usr/local", "root")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What mmdebstrap made, as far as the recipe cares; programs of the tree succeed."""
    tools = tmp_path / "tools"
    tools.mkdir()
    chroot = tools / "chroot"
    chroot.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n')
    chroot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    top = tmp_path / "tree"
    folders = (MODULES, "boot", "tmp", "run", "etc/ssh", "usr/share", "var/cache/apt", "var/log")
    for name in (*folders, *HOME, "var/lib/apt/lists", "var/tmp"):
        (top / name).mkdir(parents=True)
    (top / "boot/vmlinuz-6.1-cloud").write_bytes(b"kernel")
    (top / "etc/ssh/ssh_host_rsa_key").write_bytes(b"secret")
    (top / "var/lib/apt/lists/index").write_bytes(b"index")
    (top / "tmp/mmdebstrap.apt.conf").write_bytes(b'Dir "tree";')
    process.run([str(RECIPE / "customize"), str(top)])
    return top


def test_the_layout_is_a_bootable_images(tree: Path) -> None:
    assert (tree / MODULES / "vmlinuz").read_bytes() == b"kernel"
    assert os.listdir(tree / "boot") == []
    assert os.listdir(tree / "sysroot") == []
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert not (tree / "etc/ssh/ssh_host_rsa_key").exists()
    assert os.listdir(tree / "var/lib/apt/lists") == ["partial"]
    links = {name: os.readlink(tree / name) for name in HOME}
    assert links.pop("media") == "run/media"
    assert all(target.removeprefix("../").startswith("var/") for target in links.values()), links


def test_apts_configuration_stays_for_mmdebstrap(tree: Path) -> None:
    """Without it mmdebstrap's last apt-get update and clean are about the building machine."""
    assert (tree / "tmp/mmdebstrap.apt.conf").read_bytes() == b'Dir "tree";'


def test_programs_run_in_the_tree_only(tree: Path) -> None:
    lines = (tree.parent / "ran").read_text().splitlines()
    assert lines
    assert {line.split()[0] for line in lines} == {str(tree)}
