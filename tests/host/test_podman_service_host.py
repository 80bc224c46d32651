# SPDX-License-Identifier: Apache-2.0 OR MIT
"""podman's API server: with credentials, and without anything left when we are gone. Needs root."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bootc import process
from bootc.errors import BootcError
from bootc.oci.reference import parse_imgref
from bootc.podman.fetch import fetch_image
from bootc.podman.pull import PullRequest
from bootc.podman.service import api_service
from bootc.podman.storage import BootcStorage, make_storage
from tests.hostpodman import served_registry
from tests.ocibuild import system_tar
from vmtests.registry import PASSWORD, USER, Fault, FaultKind, On, Registry

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_podman")]
TOP = Path(__file__).resolve().parents[2]
SERVE = """
import sys, time
from bootc.podman.pull import PullRequest
from bootc.podman.service import api_service
from bootc.podman.storage import BootcStorage
storage = BootcStorage(path=sys.argv[1], run=sys.argv[2])
with storage.podman() as podman, api_service(podman, storage.run) as path:
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def storage(tmp_path_factory: pytest.TempPathFactory) -> BootcStorage:
    """A storage whose paths are short enough for a socket."""
    folder = tmp_path_factory.mktemp("s")
    return make_storage(str(folder / "root"), run=str(folder / "run"))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with served_registry(tmp_path, [system_tar()], how="gzip", tag="1") as running:
        yield running


def processes(storage: BootcStorage) -> list[int]:
    """Those that serve the API from this storage's folder in /run."""
    wanted = storage.run.encode()
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if wanted in line and b"service" in line.split(b"\0"):
            found.append(int(name))
    return found


def pull(storage: BootcStorage, registry: Registry) -> str:
    image = parse_imgref(f"docker://{registry.address}/os:1")
    return fetch_image(storage, image, lambda line: None).image.id


def test_credentials_come_from_the_auth_file(
    storage: BootcStorage, registry: Registry, tmp_path: Path
) -> None:
    registry.faults = (Fault(kind=FaultKind.PASSWORD),)
    with pytest.raises(BootcError, match=r"nauthorized|authentication required") as caught:
        pull(storage, registry)
    assert "podman login --authfile" in str(caught.value.hint)
    assert storage.images() == ()
    authfile = tmp_path / "auth.json"

    def write(user: str, password: str) -> BootcStorage:
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        other = base64.b64encode(b"a:b").decode()
        auths = {"other.example": {"auth": other}, registry.address: {"auth": secret}}
        authfile.write_text(json.dumps({"auths": auths}))
        return replace(storage, authfile=str(authfile))

    with pytest.raises(BootcError, match=r"nauthorized|authentication required|password"):
        pull(write(USER, "wrong"), registry)
    assert pull(write(USER, PASSWORD), registry) == storage.images()[0].id
    assert processes(storage) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_us(storage: BootcStorage, end: signal.Signals) -> None:
    argv = [sys.executable, "-c", SERVE, storage.path, storage.run]
    with process.running(argv, env={"PYTHONPATH": str(TOP)}, stdout=process.PIPE) as child:
        assert child.stdout is not None
        path = child.stdout.readline().decode().strip()
        assert os.path.exists(path)
        [server] = processes(storage)
        ended = os.pidfd_open(server)
        try:
            os.kill(child.pid, end)
            child.wait(20)
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            assert poll.poll(20_000)
        finally:
            os.close(ended)
    assert processes(storage) == []
    # What a killed one leaves is a socket that nobody listens on; nothing hinders the next.
    with storage.podman() as command, api_service(command, storage.run) as again:
        assert again != path
    assert processes(storage) == []


def interrupted(storage: BootcStorage) -> None:
    with storage.podman() as command, api_service(command, storage.run) as path:
        assert len(processes(storage)) == 1
        assert os.path.exists(path)
        raise KeyboardInterrupt


def test_the_server_ends_with_an_error_of_ours(storage: BootcStorage) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(storage)
    assert processes(storage) == []
    assert os.listdir(storage.run) == ["storage-run"]


@pytest.mark.parametrize("kind", [FaultKind.STALL, FaultKind.TRUNCATE])
def test_a_registry_that_stops_in_the_middle(
    storage: BootcStorage, registry: Registry, kind: FaultKind
) -> None:
    registry.faults = (Fault(kind=kind, on=On.BLOBS, at=100),)
    image = parse_imgref(f"docker://{registry.address}/os:1")
    request = PullRequest(reference=image.imgref, silent_without=2)
    with pytest.raises(BootcError, match="podman: pull of") as caught:
        fetch_image(storage, image, lambda line: None, request=request)
    assert ("nothing was heard for 2 s" in str(caught.value)) == (kind is FaultKind.STALL)
    assert processes(storage) == []
    assert storage.images() == ()
    registry.faults = ()
    assert pull(storage, registry) == storage.images()[0].id


def test_variables_of_others_do_not_lead_podman_astray(
    storage: BootcStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a service that systemd has activated, or where somebody uses a remote podman."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("CONTAINER_HOST", "unix:///nowhere")
    monkeypatch.setenv("STORAGE_DRIVER", "vfs")
    monkeypatch.setenv("STORAGE_OPTS", "overlay.mount_program=/nowhere")
    with storage.podman() as command, api_service(command, storage.run) as path:
        assert os.path.exists(path)
    assert storage.run_podman("images", "--quiet") == ""


def test_a_damaged_database_is_told_in_podmans_words(storage: BootcStorage) -> None:
    """podman refuses a storage whose database knows it by another path."""
    moved = replace(storage, alias=f"{storage.run}/other")
    with pytest.raises(BootcError, match="database") as caught:
        moved.run_podman("images")
    assert str(caught.value).startswith("podman images: exit status")
