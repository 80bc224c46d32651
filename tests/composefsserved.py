# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Composefs repositories, served over a socket within the test's process, and a client of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootc.composefs.cli.main import run_program
from bootc.composefs.digest import Algorithm
from bootc.composefs.dirfdstream_export import join_exports
from bootc.composefs.dirfdstream_fds import Incoming
from bootc.composefs.repository import Repository
from bootc.composefs.services.handles import Options
from bootc.composefs.services.replies import OCI, REPOSITORY
from bootc.composefs.services.service import make_service, read_interface
from bootc.varlink import Client, Server, VarlinkError, parse
from tests.ocibuild import END, member, system_tar, write_layout
from tests.varlinks import open_fds

INTERFACES = [parse(read_interface(name), name) for name in (REPOSITORY, OCI)]
TAR = member(b"large", b"L" * 70_000) + member(b"small", b"s" * 10) + END


class Served:
    """A server with a client, and whatever more clients are asked for."""

    def __init__(self, options: Options | None = None) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # an abstract name that the kernel chooses
        self.listener.listen()
        name = self.listener.getsockname().decode("latin-1")
        self.address = f"unix:@{name[1:]}"
        self.server = Server(make_service(options), [self.listener])
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        self.client = self.connect()

    def connect(self) -> Client:
        return Client.connect(self.address, interfaces=INTERFACES, timeout=60)

    def close(self) -> None:
        self.client.close()
        self.server.stop()
        self._thread.join()

    def repository(self, method: str, **parameters: object) -> dict[str, Any]:
        with self.client.call(f"{REPOSITORY}.{method}", parameters) as reply:
            return dict(reply.parameters)

    def oci(self, method: str, **parameters: object) -> dict[str, Any]:
        with self.client.call(f"{OCI}.{method}", parameters) as reply:
            return dict(reply.parameters)

    def open(self, path: Path) -> int:
        number = self.repository("OpenRepository", path=str(path))["handle"]
        assert isinstance(number, int)
        return number

    def fails(self, method: str, fds: tuple[int, ...] = (), /, **parameters: Any) -> VarlinkError:
        """The error; the connection is usable afterwards."""
        owner = REPOSITORY if method in INTERFACES[0].methods else OCI
        with pytest.raises(VarlinkError) as failure:
            self.client.call(f"{owner}.{method}", parameters, fds)
        assert self.oci("GetInfo") == {"features": ["splitdirfdstream-v0"]}
        return failure.value


@contextmanager
def serving(options: Options | None = None) -> Iterator[Served]:
    """A server that leaves no descriptor behind."""
    before = open_fds()
    made = Served(options)
    try:
        yield made
    finally:
        made.close()
    join_exports()
    assert open_fds() == before


def make(path: Path, algorithm: Algorithm = Algorithm.SHA256) -> Path:
    Repository.init(path, algorithm=algorithm, secure=False).close()
    return path


def filled_repository(folder: Path) -> Path:
    """A repository with an image `app` of one layer, TAR over a system."""
    path = make(folder / "filled")
    reference = write_layout(folder / "oci", [system_tar(), TAR])
    assert run_program(["cfsctl", "--repo", str(path), "oci", "pull", reference, "app"]) == 0
    return path


def is_error(error: VarlinkError, name: str, **parameters: object) -> bool:
    shown = {key: error.parameters.get(key) for key in parameters}
    return error.name.rpartition(".")[2] == name and shown == parameters


def get_layer(
    client: Client, handle: int, diff_id: str | None, *, more: bool = True, **params: object
) -> Incoming:
    """What GetLayer gives; `params` instead of a diff id."""
    if diff_id is not None:
        params["diff_id"] = diff_id
    asked = {
        "handle": handle,
        "params": {"consumer_has_cap_dac_override": False, **params},
    }
    if more:
        replies = list(client.stream(f"{OCI}.GetLayer", asked))
        assert len(replies) >= 3
    else:
        replies = [client.call(f"{OCI}.GetLayer", asked)]
    counts = {reply.parameters["dir_count"] for reply in replies}
    assert len(counts) == 1
    return Incoming([fd for reply in replies for fd in reply.fds.take_all()], counts.pop())


def put_layer(
    client: Client, handle: int, diff_id: str, fds: list[int], *, zerocopy: bool = False
) -> dict[str, Any]:
    about = {"handle": handle, "diff_id": diff_id, "zerocopy": zerocopy}
    return dict(client.call(f"{OCI}.PutLayer", about, fds).parameters)
