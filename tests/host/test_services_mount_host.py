# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Mount and OciMount: the descriptor that a client gets is a mount."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc.composefs.cli.main import run_program
from bootc.composefs.services.replies import OCI, REPOSITORY
from bootc.composefs.services.service import make_service
from bootc.linux import libc, newmount
from bootc.varlink import Client, Server
from tests.ocibuild import system_tar, write_layout

pytestmark = [pytest.mark.root, pytest.mark.erofs]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[Client, int]]:
    repo = tmp_path / "repo"
    assert run_program(["cfsctl", "--repo", str(repo), "init", "--insecure"]) == 0
    reference = write_layout(tmp_path / "oci", [system_tar()])
    argv = ["cfsctl", "--repo", str(repo), "oci", "pull", reference, "app", "--bootable"]
    assert run_program(argv) == 0
    ours, theirs = socket.socketpair()
    server = Server(make_service(), [theirs])
    thread = threading.Thread(target=server.run)
    thread.start()
    with Client(ours, timeout=60) as made:
        opened = made.call(f"{REPOSITORY}.OpenRepository", {"path": str(repo)})
        yield made, opened.parameters["handle"]
    thread.join()


@pytest.mark.parametrize("how", ["Mount", "OciMount", "bootable"])
@pytest.mark.parametrize("overlay", [False, True])
def test_the_descriptor_is_a_mount(
    client: tuple[Client, int], tmp_path: Path, how: str, overlay: bool
) -> None:
    called, handle = client
    asked = {"handle": handle, "image": "app"}
    images = called.call(f"{OCI}.Inspect", asked).parameters
    options = {"overlay": True, "read_write": True} if overlay else {}
    fds = []
    if overlay:
        for name in ("upper", "work"):
            (tmp_path / name).mkdir()
            fds.append(os.open(tmp_path / name, os.O_RDONLY))
    if how == "Mount":
        about = {"handle": handle, "name": images["composefs_erofs"], "options": options}
        reply = called.call(f"{REPOSITORY}.Mount", about, fds)
    else:
        about = {**asked, "bootable": how == "bootable", "options": options}
        reply = called.call(f"{OCI}.OciMount", about, fds)
    for fd in fds:
        os.close(fd)
    fd = reply.fds.take(reply.parameters["fd_index"])
    target = tmp_path / "mounted"
    target.mkdir()
    newmount.attach(fd, str(target))
    try:
        assert (target / "usr/bin/large").stat().st_size > 0
        assert (target / "usr/bin/large").read_bytes()
        if overlay:
            (target / "new").write_text("x")
        else:
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").write_text("x")
    finally:
        os.close(fd)
        libc.umount2(str(target), libc.MNT_DETACH)
    assert (tmp_path / "upper/new").exists() is overlay
