# SPDX-License-Identifier: Apache-2.0 OR MIT
"""When `bootc` serves, and who may call."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import pytest

from bootc import process
from bootc.cli import main
from bootc.services.server import authorize, make_service
from bootc.varlink import Call, Cancelled, Connection, Peer
from bootc.varlink.client import Client
from bootc.varlink.message import FdList, VarlinkError
from bootc.varlink.wire import Frame
from tests.sysroots import ImageContent, MockMachine

BOOTC = f"{sys.executable} -m bootc.cli.main"
Capture = pytest.CaptureFixture[str]
_ACTIVATE = (
    'exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ export LISTEN_FDS LISTEN_PID; exec "$@"'
)


def test_exec_serves_every_interface() -> None:
    with Client.connect(f"exec:{BOOTC}") as client:
        info = client.call("org.varlink.service.GetInfo").parameters
        assert (info["vendor"], info["product"]) == ("bootc", "bootc")
        names = [name for name in info["interfaces"] if name.startswith("containers.bootc")]
        assert names == [
            "containers.bootc",
            "containers.bootc.update",
            "containers.bootc.install",
        ]
        for name in names:
            client.learn(name)
        # From here on replies are checked against what the service says of itself.
        host = client.call("containers.bootc.GetStatus").parameters["host"]
        assert host["apiVersion"] == "org.containers.bootc/v1"
        found = client.call("containers.bootc.install.GetConfiguration", {"all": True})
        assert found.parameters["configuration"]["kargs"] is not None
        with pytest.raises(VarlinkError) as caught:
            client.call("containers.bootc.install.ToExistingRoot")
        assert caught.value.name == "org.varlink.service.MethodNotImplemented"


def test_status_is_what_the_command_says() -> None:
    said = process.run([*BOOTC.split(), "status", "--json"]).stdout
    with Client.connect(f"exec:{BOOTC}") as client:
        for parameters in ({}, {"booted": True}, {"booted": None}):
            reply = client.call("containers.bootc.GetStatus", parameters)
            assert reply.parameters["host"] == json.loads(said)


def test_status_of_a_sysroot_is_what_the_command_says(tmp_path_factory: Any) -> None:
    # A mount point is what tells where the ESP is; without one there are the state folders.
    machine = MockMachine(tmp_path_factory.mktemp("sysroot") / "machine")
    for version in ("1", "2"):
        machine.install(machine.image(version, ImageContent(version)))
    root = str(machine.root)
    command = [*BOOTC.split(), "status", "--json", "--sysroot", root]
    said = process.run(command, check=False)
    with Client.connect(f"exec:{BOOTC}") as client:
        if said.status == 0:
            reply = client.call("containers.bootc.GetStatusForSysroot", {"sysroot": root})
            assert reply.parameters["host"] == json.loads(said.stdout)
            assert len(reply.parameters["host"]["status"]["otherDeployments"]) == 2
        else:
            with pytest.raises(VarlinkError) as caught:
                client.call("containers.bootc.GetStatusForSysroot", {"sysroot": root})
            message = caught.value.parameters["message"]
            assert f"error: {message}" == said.stderr.splitlines()[-1]


@pytest.mark.parametrize("path", ["relative", "/nowhere", "/usr", ""])
def test_what_is_no_sysroot(path: str) -> None:
    with Client.connect(f"exec:{BOOTC}") as client:
        with pytest.raises(VarlinkError) as caught:
            client.call("containers.bootc.GetStatusForSysroot", {"sysroot": path})
        assert caught.value.name == "containers.bootc.InvalidOption"
        assert caught.value.parameters["field"] == "sysroot"


@pytest.mark.parametrize(
    ("method", "parameters", "field"),
    [
        ("ToDisk", {"device": "/dev/none"}, "device"),
        ("ToDisk", {"device": "/dev/null"}, "device"),
        ("ToDisk", {"device": "vda"}, "device"),
        ("ToDisk", {"device": "/dev/x", "rootSize": 0}, "rootSize"),
        ("ToDisk", {"device": "/dev/x", "rootSize": 1000}, "rootSize"),
        ("ToDisk", {"device": "/dev/x", "espSize": 1 << 20}, "espSize"),
        ("ToDisk", {"device": "/dev/x", "blockSetup": "raid"}, "blockSetup"),
        ("ToDisk", {"options": {"bootloader": "lilo"}}, "options.bootloader"),
        ("ToDisk", {"options": {"sourceImgref": "nowhere"}}, "options.sourceImgref"),
        ("ToDisk", {"options": {"targetTransport": "oci"}}, "options.targetTransport"),
        (
            "ToDisk",
            {"options": {"targetImgref": "a", "targetTransport": "floppy"}},
            "options.targetTransport",
        ),
        ("ToDisk", {"options": {"allowCopy": True}}, "options.allowCopy"),
        ("ToDisk", {"options": {"disableSelinux": True}}, "options.disableSelinux"),
        ("ToDisk", {"options": {"boundImages": "pull"}}, "options.boundImages"),
        ("ToDisk", {"options": {"stateroot": "mine"}}, "options.stateroot"),
        ("ToDisk", {"options": {"ukiAddon": ["a"]}}, "options.ukiAddon"),
        ("ToFilesystem", {"options": {"disableSelinux": True}}, "options.disableSelinux"),
        ("ToFilesystem", {"bootMountSpec": "UUID=1"}, "bootMountSpec"),
        ("ToFilesystem", {"rootPath": "mnt"}, "rootPath"),
    ],
)
def test_install_options_that_cannot_be(
    method: str, parameters: dict[str, Any], field: str
) -> None:
    place = {"ToDisk": {"device": "/dev/none"}, "ToFilesystem": {"rootPath": "/nowhere"}}
    with Client.connect(f"exec:{BOOTC}") as client:
        with pytest.raises(VarlinkError) as caught:
            client.call(f"containers.bootc.install.{method}", {**place[method], **parameters})
        denied = "org.varlink.service.PermissionDenied"
        if os.geteuid() != 0 and caught.value.name == denied:
            assert field in ("device", "rootPath")
            return
        assert caught.value.name == "containers.bootc.install.InvalidOption"
        assert caught.value.parameters["field"] == field
        assert caught.value.parameters["message"]


def activated(*words: str, pid: str = "$$") -> process.Completed:
    """`bootc WORDS`, started with a connection whose other end is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        script = _ACTIVATE.replace("$$", pid)
        argv = ["/bin/sh", "-c", script, "sh", *BOOTC.split(), *words]
        with process.running(
            argv, stdin=theirs.fileno(), stdout=process.PIPE, stderr=process.PIPE
        ) as child:
            out, err = child.communicate(timeout=60)
    return process.Completed(status=child.returncode, stdout=out.decode(), stderr=err.decode())


def test_it_prints_nothing_when_it_serves() -> None:
    assert activated() == process.Completed(status=0, stdout="", stderr="")


def test_verbs_and_the_sockets_of_others_are_as_before() -> None:
    done = activated("--version")
    assert (done.status, done.stdout[:6]) == (0, "bootc ")
    done = activated("status", "--json")
    assert json.loads(done.stdout)["kind"] == "BootcHost"
    done = activated(pid="1")
    assert done.status == 2
    assert "usage: bootc" in done.stderr


def test_without_arguments_and_sockets_it_tells_its_usage(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main([])
    assert caught.value.code == 2
    assert "usage: bootc" in capsys.readouterr().err


def test_bad_variables_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "many")
    assert main.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: the environment at LISTEN_FDS: 'many' is no number")


def test_starting_up_imports_little() -> None:
    """The first answer has to come at once."""
    code = (
        "import sys; from bootc.services.server import make_service; make_service();"
        "print([n for n in sys.modules if n.startswith(('bootc.deploy', 'bootc.install',"
        " 'bootc.composefs', 'bootc.oci', 'argparse', 'subprocess', 'asyncio'))])"
    )
    assert process.run([sys.executable, "-c", code]).stdout == "[]\n"


# -- Who may call


class _From(Connection):
    """A connection that somebody else made."""

    def __init__(self, uid: int) -> None:
        super().__init__()
        self._peer = Peer(pid=1, uid=uid, gid=uid)


def call_of(uid: int, method: str = "containers.bootc.GetStatus") -> Call:
    return Call(method, {}, FdList(), _From(uid), Cancelled())


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_we_may_call(uid: int) -> None:
    authorize(call_of(uid))


def test_nobody_else_may_call() -> None:
    with pytest.raises(VarlinkError) as caught:
        authorize(call_of(os.geteuid() + 1))
    assert caught.value.name == "org.varlink.service.PermissionDenied"


def test_every_method_is_asked_about() -> None:
    service = make_service()
    sent: list[dict[str, Any]] = []
    frames = ["org.varlink.service.GetInfo"]
    for name in ("", ".update", ".install"):
        frames += [f"containers.bootc{name}.{method}" for method in METHODS[name]]
    for method in frames:
        parameters = {"sysroot": "/", "device": "/", "rootPath": "/", "target": "a"}
        known = {key: parameters[key] for key in NEEDED.get(method.rpartition(".")[2], ())}
        data = json.dumps({"method": method, "parameters": known}).encode()
        service.answer(
            _From(os.geteuid() + 1),
            Frame(data, FdList()),
            lambda answer, fds: sent.append(json.loads(answer.rstrip(b"\0"))),
        )
    assert [one["error"] for one in sent] == ["org.varlink.service.PermissionDenied"] * len(frames)


METHODS = {
    "": ("GetStatus", "GetStatusForSysroot"),
    ".update": ("Check", "Upgrade", "Switch", "Rollback"),
    ".install": ("GetConfiguration", "ToDisk", "ToFilesystem"),
}
NEEDED = {
    "GetStatusForSysroot": ("sysroot",),
    "Switch": ("target",),
    "ToDisk": ("device",),
    "ToFilesystem": ("rootPath",),
}
