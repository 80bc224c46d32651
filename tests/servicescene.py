# SPDX-License-Identifier: Apache-2.0 OR MIT
"""A mock machine with something to update to, and the service for it (`tests/mockservice.py`)."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bootc import process
from bootc.deploy import state
from bootc.deploy.progress import Stage
from bootc.services.server import read_interface
from bootc.varlink import Client
from tests.sysroots import ImageContent, MockMachine
from tests.waiting import wait_until

TOP = Path(__file__).resolve().parents[1]
INTERFACES = [read_interface(f"containers.bootc{name}") for name in ("", ".update", ".install")]
PATIENCE = 60.0
_ACTIVATE = 'exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'


class Scene:
    """A mock machine with something to update to, and a service for it."""

    def __init__(self, path: Path) -> None:
        self.machine = MockMachine(path / "machine")
        self.folder = path / "scene"
        self.folder.mkdir()
        self.address = str(self.folder / "socket")
        self.lock = f"{path}/lock"
        self.first = self.machine.install(self.machine.image("updates", ImageContent("1")))
        self.machine.image("updates", ImageContent("2"))
        self.file = path / "scene.json"
        self.tell(None)

    def tell(self, pause: Stage | None, *, idle: float = 600) -> None:
        """Write what the service and its workers read; `pause`: where operations wait."""
        told = {
            "sysroot": asdict(self.machine.sysroot),
            "lock": self.lock,
            "pause": pause,
            "idle": idle,
            "folder": str(self.folder),
        }
        self.file.write_text(json.dumps(told))

    @contextmanager
    def service(self) -> Iterator[Any]:
        """The service, as a process that ends with the block."""
        path = self.address
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            program = [sys.executable, f"{TOP}/tests/mockservice.py", "serve", str(self.file)]
            argv = ["/bin/sh", "-c", _ACTIVATE, "sh", *program]
            with process.running(argv, stdin=listener.fileno(), stdout=process.PIPE) as child:
                try:
                    yield child
                finally:
                    os.unlink(path)

    def client(self) -> Client:
        return Client.connect(f"unix:{self.address}", interfaces=INTERFACES, timeout=PATIENCE)

    def wait_for(self, name: str) -> int:
        """The process id that the service or a worker wrote."""
        path = self.folder / name
        wait_until(path.exists, PATIENCE)
        return int(path.read_text())

    def go(self) -> None:
        (self.folder / "go").touch()

    def staged(self) -> str | None:
        mark = state.read_staged(self.machine.sysroot.staged_file)
        return mark.deployment if mark else None

    def is_as_before(self) -> None:
        """Nothing is staged, and nothing of what was begun is in the way of the next one."""
        assert self.staged() is None
        assert not (self.machine.run / "reboot-required").exists()
        assert self.machine.menu() == [self.first]
        assert state.list_deployments(str(self.machine.root)) == [self.first]
        self.machine.check_whole()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter, if it ends meanwhile
        return False
