# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The kernel says who calls: a process that is nobody calls the service of root; and one lock."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from bootc import process
from bootc.deploy.sysroot import one_at_a_time
from bootc.varlink import Client, VarlinkError, bind

pytestmark = pytest.mark.root

METHODS = {
    "org.varlink.service.GetInfo": {},
    "containers.bootc.GetStatus": {},
    "containers.bootc.GetStatusForSysroot": {"sysroot": "/"},
    "containers.bootc.update.Check": {},
    "containers.bootc.update.Upgrade": {},
    "containers.bootc.update.Rollback": {},
    "containers.bootc.install.GetConfiguration": {},
    "containers.bootc.install.ToDisk": {"device": "/dev/none"},
}
_ACTIVATE = (
    'exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ export LISTEN_FDS LISTEN_PID; exec "$@"'
)
_NOBODY = 65534


def call_as_nobody(path: str, method: str, parameters: dict[str, str]) -> str:
    """The error of the reply. The connection is made by a process that has given root up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(path)
                except PermissionError:
                    os.write(writing, b"no connection")
                    os._exit(0)
                call = json.dumps({"method": method, "parameters": parameters})
                sock.sendall(call.encode() + b"\0")
                os.write(writing, json.loads(sock.recv(1 << 16)[:-1])["error"].encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def test_only_root_may_call(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    path = f"{tmp_path}/socket"
    argv = ["/bin/sh", "-c", _ACTIVATE, "sh", sys.executable, "-m", "bootc.cli.main"]
    with bind(path) as listener, process.running(argv, stdin=listener.fileno()):
        assert call_as_nobody(path, "containers.bootc.GetStatus", {}) == "no connection"
        os.chmod(path, 0o666)
        for method, parameters in METHODS.items():
            error = call_as_nobody(path, method, parameters)
            assert error == "org.varlink.service.PermissionDenied", method
        with Client.connect(f"unix:{path}", timeout=60) as client:
            assert client.call("containers.bootc.GetStatus").parameters["host"]


def test_an_install_waits_for_nobody() -> None:
    """`/proc` is a mount point, and there is no such image: without the lock it fails for that."""
    given = {"rootPath": "/proc", "options": {"sourceImgref": "oci:/nowhere"}}
    method = "containers.bootc.install.ToFilesystem"
    with Client.connect(f"exec:{sys.executable} -m bootc.cli.main", timeout=60) as client:
        with one_at_a_time(), pytest.raises(VarlinkError) as caught:
            client.call(method, given)
        assert caught.value.name == "containers.bootc.install.Busy"
        with pytest.raises(VarlinkError) as caught:
            client.call(method, given)
        assert caught.value.name == "containers.bootc.install.Failed"
        assert "is no OCI layout" in caught.value.parameters["message"]
