# SPDX-License-Identifier: Apache-2.0 OR MIT
"""systemd's `varlinkctl` calls every method of the composefs services that needs no descriptors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootc import process
from bootc.composefs.cli.main import run_program
from bootc.composefs.repository import Repository
from bootc.composefs.services.replies import OCI, REPOSITORY
from bootc.composefs.services.service import read_interface
from bootc.composefs.stored import load_image
from tests.ocibuild import sha256, system_tar, write_layout
from tests.varlinkctl import find_varlinkctl
from tests.waiting import wait_until

CFSCTL = (sys.executable, "-m", "bootc.composefs.cli.main")

pytestmark = pytest.mark.skipif(
    find_varlinkctl() is None,
    reason="systemd before 255 has no varlinkctl; VARLINKCTL can name one",
)


class Varlinkctl:
    """Calls a server of a repository with the image `app`."""

    def __init__(self, address: str, folder: Path) -> None:
        self.program = find_varlinkctl() or ""
        self.address = address
        self.folder = folder

    def run(self, *argv: str) -> process.Completed:
        env = {"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"}
        return process.run([self.program, *argv], env=env, timeout=60, check=False)

    def call(self, method: str, *options: str, **parameters: object) -> list[dict[str, Any]]:
        text = json.dumps(parameters)
        done = self.run("call", "--json=short", *options, self.address, method, text)
        assert done.status == 0, done.stderr
        return [json.loads(line.lstrip("\x1e")) for line in done.stdout.splitlines() if line]

    def fails(self, method: str, **parameters: object) -> str:
        done = self.run("call", self.address, method, json.dumps(parameters))
        assert done.status != 0
        return done.stderr


@pytest.fixture
def varlinkctl(tmp_path: Path) -> Iterator[Varlinkctl]:
    repo, path = tmp_path / "repo", tmp_path / "socket"
    assert run_program(["cfsctl", "--repo", str(repo), "init", "--insecure"]) == 0
    reference = write_layout(tmp_path / "oci", [system_tar()])
    assert run_program(["cfsctl", "--repo", str(repo), "oci", "pull", reference, "app"]) == 0
    argv = [*CFSCTL, "--repo", str(repo), "varlink", "--address", str(path)]
    with process.running(argv):
        wait_until(path.is_socket, 60)
        yield Varlinkctl(f"unix:{path}", tmp_path)


def test_it_reads_the_interfaces(varlinkctl: Varlinkctl) -> None:
    for name in (REPOSITORY, OCI):
        path = varlinkctl.folder / f"{name}.varlink"
        path.write_text(read_interface(name))
        assert varlinkctl.run("validate-idl", str(path)).status == 0
        told = varlinkctl.run("introspect", varlinkctl.address, name)
        assert told.status == 0, told.stderr
        assert "method " in told.stdout


def test_it_calls_every_method_that_needs_no_descriptors(varlinkctl: Varlinkctl) -> None:
    call, folder = varlinkctl.call, varlinkctl.folder
    with Repository.open(folder / "repo") as repo:
        image = load_image(repo, "app")
    new = str(folder / "new")
    about = {"path": new, "insecure": True}
    assert call(f"{REPOSITORY}.InitRepository", **about) == [{"created": True}]
    assert call(f"{REPOSITORY}.EnsureRepository", **about) == [{"status": "Opened"}]
    (opened,) = call(f"{REPOSITORY}.OpenRepository", path=new)
    assert opened["hash_algorithm"] == "sha512"
    assert "InvalidHandle" in varlinkctl.fails(f"{OCI}.ListImages", handle=opened["handle"])
    assert call(f"{REPOSITORY}.CloseRepository", handle=0) == [{}]
    assert call(f"{REPOSITORY}.Fsck", handle=0)[0]["ok"] is True
    assert call(f"{REPOSITORY}.Gc", handle=0, dry_run=True, roots=[])[0]["dry_run"] is True
    assert call(f"{REPOSITORY}.ListImageRefs", handle=0) == [{"images": []}]
    (told,) = call(f"{OCI}.Inspect", handle=0, image="app")
    assert told["config"].encode() == image.config
    objects = call(f"{REPOSITORY}.ImageObjects", handle=0, name=told["composefs_erofs"])
    assert objects[0]["object_ids"]
    assert call(f"{OCI}.GetInfo") == [{"features": ["splitdirfdstream-v0"]}]
    assert call(f"{OCI}.ListImages", handle=0)[0]["images"][0]["name"] == "app"
    assert call(f"{OCI}.Check", handle=0)[0]["ok"] is True
    tag = {"manifest_digest": image.manifest_digest, "name": "other"}
    assert call(f"{OCI}.Tag", handle=0, **tag) == [{}]
    assert call(f"{OCI}.Untag", handle=0, name="other") == [{}]
    (computed,) = call(f"{OCI}.ComputeId", handle=0, image="app", bootable=False)
    assert computed["image_id"] == told["composefs_erofs"]
    (layer,) = call(f"{OCI}.HasLayer", handle=0, diff_id=sha256(system_tar()))
    assert layer["present"] is True
    del layer["present"]
    finals = call(
        f"{OCI}.FinalizeImage",
        handle=0,
        manifest_json=image.manifest.decode(),
        config_json=image.config.decode(),
        layers=[{"diff_id": sha256(system_tar()), **layer}],
        name="final",
    )
    assert finals[0]["manifest_digest"] == image.manifest_digest
    reference = f"oci:{folder}/oci"
    pull = {"image": reference, "local_fetch": "disabled", "bootable": False}
    replies = call(f"{OCI}.Pull", "--more", handle=0, **pull)
    assert list(replies[-1]) == ["completed"]
    assert {"skipped": {"id": sha256(system_tar())}} in replies


def test_it_starts_cfsctl_itself(tmp_path: Path) -> None:
    program = tmp_path / "cfsctl"
    code = "from bootc.composefs.cli.main import entry; entry()"
    top = str(Path(__file__).resolve().parents[2])
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {top!r})\n{code}\n")
    program.chmod(0o755)
    asked = Varlinkctl(f"exec:{program}", tmp_path)
    assert asked.call(f"{OCI}.GetInfo") == [{"features": ["splitdirfdstream-v0"]}]
    assert "InvalidHandle" in asked.fails(f"{OCI}.ListImages", handle=0)
