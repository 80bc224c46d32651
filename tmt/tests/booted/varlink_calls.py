#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""The socket starts the service for root alone; what it says is what the commands say.

Methods that change the machine are called where it is to be changed: varlink_{install,update}.py.
"""

import json
import os
import subprocess

import booted
import varlink_parts
from varlink_parts import INSTALL, SOCKET, UPDATE, call, expect_error

DENIED = "org.varlink.service.PermissionDenied"
SETPRIV = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def check() -> None:
    activation()
    same_as_commands()
    refusals()
    callers()
    booted.output("systemctl", "stop", varlink_parts.UNIT)
    booted.expect_equal(varlink_parts.unit("Result"), "success", "the service's result")
    booted.expect_equal(varlink_parts.unit("ExecMainStatus"), "0", "its exit status")


def activation() -> None:
    found = varlink_parts.unit("ActiveState", "bootc-varlink.socket")
    booted.expect_equal(found, "active", "the socket's state")
    booted.expect_equal(varlink_parts.unit("ActiveState"), "inactive", "the service's state before")
    status = os.stat(SOCKET)
    booted.expect_equal((status.st_uid, status.st_mode & 0o777), (0, 0o600), "owner and mode")
    names = booted.told("varlinkctl", "list-interfaces", SOCKET).split()
    booted.expect(
        {"containers.bootc", UPDATE, INSTALL, "org.varlink.service"} <= set(names), "interfaces"
    )
    booted.expect_equal(varlink_parts.unit("ActiveState"), "active", "the service's state after")


def same_as_commands() -> None:
    document = booted.status()
    booted.expect(document["status"]["booted"] is not None, "the machine has a status")
    said = call("containers.bootc.GetStatus")["host"]
    booted.expect(said == document, f"the same status: {json.dumps(said)}")
    only = json.loads(booted.output("bootc", "status", "--json", "--booted"))
    said = call("containers.bootc.GetStatus", {"booted": True})["host"]
    booted.expect(said == only, "the same status of what is booted")
    said = call("containers.bootc.GetStatus", address="exec:/usr/bin/bootc")["host"]
    booted.expect(said == document, "the same status from a service that varlinkctl started")
    text = booted.output("bootc", "install", "print-configuration", "--all")
    config = call(f"{INSTALL}.GetConfiguration", {"all": True})["configuration"]
    for field, key in (
        ("rootFsType", "root-fs-type"),
        ("kargs", "kargs"),
        ("kargDeletes", "karg-deletes"),
        ("bootloader", "bootloader"),
    ):
        booted.expect_equal(config.get(field), json.loads(text).get(key), f"configured {field}")


def refusals() -> None:
    expect_error("containers.bootc.Get", {}, "org.varlink.service.MethodNotFound")
    wrong = "org.varlink.service.InvalidParameter"
    expect_error(f"{UPDATE}.Upgrade", {"speed": "high"}, wrong)
    expect_error(f"{UPDATE}.Rollback", {}, f"{UPDATE}.Failed")
    option = f"{INSTALL}.InvalidOption"
    expect_error(f"{INSTALL}.ToFilesystem", {"rootPath": "/usr/bin"}, option, "rootPath")
    missing = "org.varlink.service.MethodNotImplemented"
    expect_error(f"{INSTALL}.ToExistingRoot", {}, missing)
    option = "containers.bootc.InvalidOption"
    expect_error("containers.bootc.GetStatusForSysroot", {"sysroot": "/usr"}, option, "sysroot")


def callers() -> None:
    argv = [*SETPRIV, "varlinkctl", "call", SOCKET, "containers.bootc.GetStatus", "{}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    booted.expect(done.returncode != 0 and DENIED not in done.stderr, "nobody cannot connect")
    os.chmod(SOCKET, 0o666)
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    finally:
        os.chmod(SOCKET, 0o600)
    print(done.stdout, done.stderr, flush=True)
    booted.expect(done.returncode != 0 and DENIED in done.stderr, "nobody who can is refused")


if __name__ == "__main__":
    booted.main(check)
