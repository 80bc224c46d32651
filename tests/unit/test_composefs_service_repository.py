# SPDX-License-Identifier: Apache-2.0 OR MIT
"""org.composefs.Repository over a socket, and what org.composefs.Oci says of images."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootc import process
from bootc.composefs.cli.main import run_program
from bootc.composefs.repository import Repository
from bootc.composefs.services.handles import HANDLES_MAX, Options
from bootc.composefs.services.replies import OCI, REPOSITORY
from bootc.composefs.services.service import read_interface
from bootc.composefs.stored import load_image
from bootc.varlink import Connection, Peer, VarlinkError
from tests.composefsserved import (
    Served,
    filled_repository,
    is_error,
    make,
    serving,
)
from tests.ocibuild import sha256
from tests.varlinks import open_fds
from tests.waiting import wait_until


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    return filled_repository(tmp_path)


def test_interfaces_are_served_as_their_files_are(served: Served) -> None:
    for name in (REPOSITORY, OCI):
        assert served.client.learn(name).text == read_interface(name)
    info = served.client.call("org.varlink.service.GetInfo").parameters
    assert info["vendor"] == "org.composefs"
    assert info["product"] == "cfsctl"
    assert info["interfaces"] == ["org.varlink.service", REPOSITORY, OCI]


def test_a_repository_is_made_once(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "a/b/repo"
    about = {"path": str(path), "algorithm": "fsverity-sha256-12", "insecure": True}
    assert served.repository("InitRepository", **about) == {"created": True}
    assert served.repository("InitRepository", **about) == {"created": False}
    other = {**about, "algorithm": "fsverity-sha512-12"}
    assert is_error(served.fails("InitRepository", **other), "InvalidSpec")
    assert served.repository("EnsureRepository", **other) == {"status": "Opened"}
    opened = served.repository("OpenRepository", path=str(path))
    assert opened["hash_algorithm"] == "sha256"
    assert opened["objects_device_id"] == os.stat(path).st_dev
    fresh = served.repository("EnsureRepository", path=str(tmp_path / "x"), insecure=True)
    assert fresh == {"status": "Created"}
    (path / "objects/ab").mkdir(parents=True)
    (path / f"objects/ab/{'c' * 62}").touch()
    (path / "meta.json").unlink()
    assert served.repository("EnsureRepository", **about) == {"status": "Upgraded"}


@pytest.mark.parametrize("path", ["", "relative", "/x\0y"])
def test_a_path_has_to_be_absolute(served: Served, path: str) -> None:
    for method in ("InitRepository", "EnsureRepository", "OpenRepository"):
        assert is_error(served.fails(method, path=path), "InvalidSpec")


def test_exactly_one_repository_is_opened(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_error(served.fails("OpenRepository"), "InvalidSpec")
    assert is_error(served.fails("OpenRepository", user=False), "InvalidSpec")
    assert is_error(served.fails("OpenRepository", user=True, path="/x"), "InvalidSpec")
    assert is_error(served.fails("OpenRepository", user=True), "RepoNotFound")
    assert is_error(served.fails("OpenRepository", path=str(tmp_path)), "RepoNotFound")
    (tmp_path / ".var/lib").mkdir(parents=True)
    make(tmp_path / ".var/lib/composefs")
    assert served.repository("OpenRepository", user=True, system=False)["handle"] >= 1
    monkeypatch.delenv("HOME")
    assert is_error(served.fails("OpenRepository", user=True), "InvalidSpec")


def test_handles_are_of_their_connection(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    assert served.open(filled) == handle + 1
    before = len(open_fds())
    with served.connect() as other:
        with pytest.raises(VarlinkError, match="InvalidHandle"):
            other.call(f"{OCI}.ListImages", {"handle": handle})
        theirs = other.call(f"{REPOSITORY}.OpenRepository", {"path": str(filled)})
        number = theirs.parameters["handle"]
        assert len(open_fds()) > before
    wait_until(lambda: len(open_fds()) <= before)
    assert is_error(served.fails("ListImages", handle=number), "InvalidHandle", handle=number)
    assert served.repository("CloseRepository", handle=handle) == {}
    assert is_error(served.fails("CloseRepository", handle=handle), "InvalidHandle", handle=handle)
    assert is_error(served.fails("Fsck", handle=handle), "InvalidHandle", handle=handle)
    assert is_error(served.fails("Fsck", handle=-1), "InvalidHandle", handle=-1)


def test_handles_are_limited(served: Served, filled: Path) -> None:
    for _ in range(HANDLES_MAX):
        served.open(filled)
    error = served.fails("OpenRepository", path=str(filled))
    assert is_error(error, "InvalidSpec")


def test_options_hold_for_what_clients_open(filled: Path) -> None:
    made = Served(Options(hash="sha512"))
    assert is_error(made.fails("OpenRepository", path=str(filled)), "RepoNotFound")
    made.close()
    made = Served(Options(require_verity=True))
    assert is_error(made.fails("OpenRepository", path=str(filled)), "RepoNotFound")
    made.close()


def test_handle_zero_is_the_repository_of_the_server(served: Served, filled: Path) -> None:
    assert is_error(served.fails("ListImages", handle=0), "InvalidHandle", handle=0)
    made = Served(Options(default=str(filled)))
    for _ in range(2):
        assert made.oci("ListImages", handle=0)["images"][0]["name"] == "app"
        assert made.repository("CloseRepository", handle=0) == {}
    made.close()
    made = Served(Options(default=str(filled / "no")))
    assert is_error(made.fails("ListImages", handle=0), "RepoNotFound")
    made.close()


def test_checking_and_collecting_tell_what_the_commands_tell(
    served: Served, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*argv: str) -> Any:
        capsys.readouterr()
        assert run_program(["cfsctl", "--repo", str(filled), *argv]) == 0
        return json.loads(capsys.readouterr().out)

    handle = served.open(filled)
    assert served.repository("Fsck", handle=handle) == said("fsck", "--json")
    assert served.oci("Check", handle=handle) == said("oci", "fsck", "--json")
    assert served.oci("Check", handle=handle, image="app")["images_checked"] == 1
    quick = served.repository("Fsck", handle=handle, metadata_only=True)
    assert quick["ok"] is True
    assert quick["objects_checked"] == 0
    assert served.oci("ListImages", handle=handle) == said("oci", "images", "--json")
    assert served.oci("Inspect", handle=handle, image="app") == said("oci", "inspect", "app")
    assert served.repository("ListImageRefs", handle=handle) == {"images": []}
    erofs = served.oci("Inspect", handle=handle, image="app")["composefs_erofs"]
    objects = served.repository("ImageObjects", handle=handle, name=erofs)["object_ids"]
    assert objects == sorted(objects)
    assert all(item.startswith("sha256:") for item in objects)
    assert len(objects) == 3
    served.oci("Untag", handle=handle, name="app")
    told = served.repository("Gc", handle=handle, dry_run=True, roots=[])
    done = served.repository("Gc", handle=handle, dry_run=False, roots=[])
    assert told == {**done, "dry_run": True}
    assert done["result"]["objects_removed"] > 5


def test_collecting_fails_while_another_handle_is_open(served: Served, filled: Path) -> None:
    handle = served.open(filled)
    served.open(filled)
    error = served.fails("Gc", handle=handle, dry_run=False, roots=[])
    assert is_error(error, "InternalError")
    assert "is open 1 more time" in error.parameters["message"]


def send(client: socket.socket, method: str, **parameters: object) -> None:
    message = {"method": f"{REPOSITORY}.{method}", "parameters": parameters}
    client.sendall(json.dumps(message).encode() + b"\0")


def receive(client: socket.socket) -> Any:
    data = b""
    while not data.endswith(b"\0"):
        data += client.recv(9999)
    return json.loads(data[:-1])["parameters"]


def asked(client: socket.socket, method: str, **parameters: object) -> Any:
    send(client, method, **parameters)
    return receive(client)


HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("leaves", [False, True])
def test_collecting_waits_for_other_processes_as_long_as_the_client(
    served: Served, filled: Path, caplog: pytest.LogCaptureFixture, leaves: bool
) -> None:
    caplog.set_level("INFO")
    handle = served.open(filled)
    served.oci("Untag", handle=handle, name="app")
    served.repository("CloseRepository", handle=handle)
    before = len(open_fds())
    objects = sorted((filled / "objects").rglob("*"))
    argv = [sys.executable, "-c", HOLDER, str(filled)]
    with process.running(argv, stdin=process.PIPE, stdout=process.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        client = socket.socket(socket.AF_UNIX)
        client.connect(served.listener.getsockname())
        handle = asked(client, "OpenRepository", path=str(filled))["handle"]
        send(client, "Gc", handle=handle, dry_run=False, roots=[])
        wait_until(lambda: "wait for the others that use" in caplog.text)
        if leaves:
            client.close()
            wait_until(lambda: len(open_fds()) <= before + 2)
            assert sorted((filled / "objects").rglob("*")) == objects
        holder.stdin.close()
        holder.wait(20)
    if not leaves:
        assert receive(client)["result"]["objects_removed"] > 5
        client.close()
    # Its repository is open until the server has seen that it left.
    wait_until(lambda: len(open_fds()) <= before)
    handle = served.open(filled)
    again = served.repository("Gc", handle=handle, dry_run=False, roots=[])
    assert (again["result"]["objects_removed"] > 5) is leaves


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("OpenRepository", {"path": "{}"}),
        ("EnsureRepository", {"path": "{}"}),
        ("InitRepository", {"path": "{}", "algorithm": "fsverity-sha256-12", "insecure": True}),
        ("ListImageRefs", {"handle": 0}),
    ],
)
def test_who_leaves_while_another_process_collects_is_noticed(
    filled: Path, caplog: pytest.LogCaptureFixture, method: str, parameters: dict[str, object]
) -> None:
    caplog.set_level("INFO")
    given = {key: str(filled) if value == "{}" else value for key, value in parameters.items()}
    argv = [sys.executable, "-c", HOLDER.replace("LOCK_SH", "LOCK_EX"), str(filled)]
    with (
        serving(Options(default=str(filled))) as served,
        process.running(argv, stdin=process.PIPE, stdout=process.PIPE) as holder,
    ):
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        client = socket.socket(socket.AF_UNIX)
        client.connect(served.listener.getsockname())
        send(client, method, **given)
        wait_until(lambda: f"wait for the garbage collection of {filled} …" in caplog.text)
        client.close()
        # While the other one is at it still.
        wait_until(lambda: f"wait for the garbage collection of {filled}: failed" in caplog.text)
        assert served.repository("EnsureRepository", path=str(filled.parent / "new"), insecure=True)
        holder.stdin.close()
        holder.wait(20)
    assert [one for one in caplog.records if one.levelname != "INFO"] == []


@pytest.mark.parametrize("name", ["", "nope", "a\0b", "..", "refs/x", "0" * 64])
def test_unknown_images_are_typed_errors(served: Served, filled: Path, name: str) -> None:
    handle = served.open(filled)
    options = {"overlay": None}
    named: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ImageObjects", {"name": name}),
        ("Mount", {"name": name, "options": options}),
    )
    for method, more in named:
        error = served.fails(method, handle=handle, **more)
        assert is_error(error, "NoSuchRef", reference=name), error
    error = served.fails("Gc", handle=handle, dry_run=True, roots=[name])
    assert error.name == f"{REPOSITORY}.NoSuchRef", error
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("Inspect", {"image": name}),
        ("Check", {"image": name}),
        ("Untag", {"name": name}),
        ("ComputeId", {"image": name, "bootable": False}),
        ("OciMount", {"image": name, "bootable": False, "options": options}),
    )
    for method, more in calls:
        error = served.fails(method, handle=handle, **more)
        known = ("NoSuchImage", "InvalidRequest", "InternalError")
        assert any(is_error(error, kind) for kind in known), error
    missing = sha256(b"missing")
    error = served.fails("Inspect", handle=handle, image=f"@{missing}")
    assert is_error(error, "NoSuchImage", image=f"@{missing}")
    assert is_error(served.fails("Inspect", handle=handle, image="@x"), "InvalidDigest")
    error = served.fails("Tag", handle=handle, manifest_digest=missing, name="t")
    assert is_error(error, "NoSuchImage")
    assert is_error(
        served.fails("Tag", handle=handle, manifest_digest="x", name="t"), "InvalidDigest"
    )


def test_tags_and_ids(served: Served, filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = served.open(filled)
    with Repository.open(filled) as repo:
        image = load_image(repo, "app")
    digest = image.manifest_digest
    assert served.oci("Tag", handle=handle, manifest_digest=digest, name="b/c:1") == {}
    found = served.oci("ListImages", handle=handle, filter="b/")["images"]
    assert [item["name"] for item in found] == ["b/c:1"]
    assert is_error(
        served.fails("Tag", handle=handle, manifest_digest=digest, name="@x"), "InvalidRequest"
    )
    for bootable, xattrs in itertools.product(
        (False, True), (None, "AllowlistOnly", "KeepUserXattrs")
    ):
        about = {"image": "b/c:1", "bootable": bootable, "xattrs": xattrs}
        mine = served.oci("ComputeId", handle=handle, **about)
        argv = ["--bootable"] if bootable else []
        argv += ["--xattrs", "keep-user-xattrs"] if xattrs == "KeepUserXattrs" else []
        capsys.readouterr()
        run_program(["cfsctl", "--repo", str(filled), "oci", "compute-id", "app", *argv])
        assert mine["image_id"] == capsys.readouterr().out.strip()
    error = served.fails("ComputeId", handle=handle, image="app", verity="00", bootable=False)
    assert is_error(error, "InternalError")


def test_nobody_else_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says that the client is somebody else."""
    made = Served()
    monkeypatch.setattr(Connection, "peer", Peer(pid=1, uid=os.geteuid() + 1, gid=1))
    with pytest.raises(VarlinkError, match="PermissionDenied"):
        made.client.call(f"{OCI}.GetInfo")
    made.close()
